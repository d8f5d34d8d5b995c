"""`detcheck gate`: verdicts as exit codes, and everything that is a usage error instead."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gate.runs import write
from timing import child_seconds

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK


def test_pass_through_the_real_program(program, good):
    result = program("gate", good, "--max-distinct", "1", "--kernels", "batch-invariant")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("PASS")
    assert "0 of 24 differed; with 95 % confidence" in result.out


def test_fail_through_the_real_program(program, good):
    result = program("gate", good, "-k", "stock", "--json")
    assert (result.code, result.err) == (1, "")
    document = json.loads(result.out)
    assert document["verdict"] == "fail"
    assert "2 distinct answers" in document["reasons"][0]


def test_inconclusive_through_the_real_program(program, tmp_path):
    run = write(tmp_path / "run", ScriptedEngine(observed_share=0.5))
    result = program("gate", run)
    assert (result.code, result.err) == (3, "")
    assert result.out.startswith("INCONCLUSIVE")


def test_a_usage_error_through_the_real_program(program, tmp_path):
    result = program("gate", tmp_path / "nowhere")
    assert result.code == 2
    assert "no run directory" in result.only_sentence


def test_json_says_what_was_judged(detcheck, good):
    document = json.loads(detcheck("gate", good, "--json").out)
    assert document["verdict"] == "pass"
    assert document["kernels"] == [BATCH_INVARIANT]
    assert document["max_distinct"] == 1
    assert document["baseline"] is None
    assert document["prompts"][0]["distinct"] == 1
    assert {finding["effect"] for finding in document["findings"]} == {"note"}
    assert len(document["reasons"]) == len(document["findings"])


def test_several_kernels_are_judged_each(detcheck, good):
    result = detcheck("gate", good, "-k", "stock,batch-invariant", "--json")
    document = json.loads(result.out)
    assert result.code == 1
    assert [row["verdict"] for row in document["prompts"]] == ["fail", "pass"]


def test_thresholds_come_from_pyproject_unless_given(detcheck, good):
    Path("pyproject.toml").write_text(
        "[tool.detcheck.gate]\nmax-distinct = 2\nkernels = 'stock'\n", encoding="utf-8"
    )
    assert detcheck("gate", good).code == 0
    assert detcheck("gate", good, "--max-distinct", "1").code == 1
    assert detcheck("gate", good, "--max-distinct", "1", "-k", "batch-invariant").code == 0


def test_a_baseline_passes_its_like_and_fails_another(detcheck, good, bad, tmp_path):
    again = write(tmp_path / "again")
    assert detcheck("gate", again, "--baseline", good).code == 0
    result = detcheck("gate", bad, "--baseline", good)
    assert result.code == 1
    assert "the baseline did not give: they part at token 5" in result.out


def test_the_baseline_of_pyproject_is_relative_to_it(detcheck, good, bad):
    Path("pyproject.toml").write_text(
        "[tool.detcheck.gate]\nbaseline = '../good'\n", encoding="utf-8"
    )
    assert detcheck("gate", bad).code == 1


def test_junit_and_summary_are_written(detcheck, bad, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = detcheck("gate", bad, "--junit", tmp_path / "out/junit.xml", "--github-summary")
    assert result.code == 1
    root = ElementTree.parse(tmp_path / "out/junit.xml").getroot()
    assert root.get("failures") == "1"
    assert "❌ fail" in summary.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max-distinct", "0"], "--max-distinct must be at least 1, not 0."),
        (["--max-distinct", "-3"], "--max-distinct must be at least 1, not -3."),
        (["--kernels", "fast"], "Unknown kernels 'fast'"),
        (["--kernels", ""], "--kernels names none"),
        (["--kernels", "batch-invariant:matmul"], "The run has no batch-invariant:matmul"),
        (["--github-summary"], "GITHUB_STEP_SUMMARY"),
        (["--baseline", "nowhere"], "no run directory nowhere"),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error(detcheck, good, args, words):
    result = detcheck("gate", good, *args)
    assert result.code == 2
    assert words in result.only_sentence


def test_kernels_that_were_not_run_are_a_usage_error(detcheck, tmp_path):
    run = write(tmp_path / "run", kernels=(STOCK,))
    result = detcheck("gate", run, "--kernels", "batch-invariant")
    assert result.code == 2
    assert "The run has no batch-invariant kernels, only stock" in result.only_sentence


def test_junit_that_cannot_be_written_is_a_usage_error(detcheck, good, tmp_path):
    result = detcheck("gate", good, "--junit", tmp_path)
    assert result.code == 2
    assert result.err.startswith(f"error: {tmp_path} cannot be written")


def test_broken_toml_is_a_usage_error(detcheck, good):
    Path("pyproject.toml").write_text("[tool.detcheck.gate\n", encoding="utf-8")
    result = detcheck("gate", good)
    assert result.code == 2
    assert "pyproject.toml is not valid TOML" in result.only_sentence


def test_an_unknown_key_is_a_usage_error(detcheck, good):
    Path("pyproject.toml").write_text("[tool.detcheck.gate]\nmax = 1\n", encoding="utf-8")
    assert "unknown key 'max'" in detcheck("gate", good).only_sentence


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def drop_run_file(run: Path) -> None:
    (run / "run.json").unlink()


def truncate(run: Path) -> None:
    data = (run / "completions.jsonl").read_bytes()
    (run / "completions.jsonl").write_bytes(data[: len(data) // 2])


def newer_schema(run: Path) -> None:
    edit(run / "run.json", b'"schema_version": 2', b'"schema_version": 99')


def edited_answer(run: Path) -> None:
    edit(run / "variants.jsonl", b'"token_ids":[', b'"token_ids":[7,')


def edited_count(run: Path) -> None:
    data = (run / "run.json").read_bytes()
    (run / "run.json").write_bytes(re.sub(rb'"completed": \d+', b'"completed": 1', data))


def half_json(run: Path) -> None:
    data = (run / "run.json").read_bytes()
    (run / "run.json").write_bytes(data[: len(data) // 2])


def other_json(run: Path) -> None:
    (run / "run.json").write_text("[1, 2]", encoding="utf-8")


def missing_file(run: Path) -> None:
    (run / "variants.jsonl").unlink()


def dropped_condition(run: Path) -> None:
    document = json.loads((run / "run.json").read_bytes())
    del document["conditions"][-1]
    (run / "run.json").write_text(json.dumps(document), encoding="utf-8")


def smuggled_prompt_index(run: Path) -> None:
    edit(run / "run.json", b'"prompt_index": 0', b'"prompt_index": 9')


@pytest.mark.parametrize(
    "damage",
    [
        drop_run_file,
        truncate,
        newer_schema,
        edited_answer,
        edited_count,
        half_json,
        other_json,
        missing_file,
        dropped_condition,
        smuggled_prompt_index,
    ],
)
@pytest.mark.parametrize("command", ["gate", "compare"])
def test_a_damaged_run_is_refused_in_one_sentence(detcheck, good, damage, command):
    damage(good)
    args = [good] if command == "gate" else [good, good]
    result = detcheck(command, *args)
    assert result.code == 2, result.err
    assert str(good) in result.only_sentence


def test_a_file_in_place_of_a_run_is_refused(detcheck, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "no run directory" in detcheck("gate", tmp_path / "file").only_sentence


def test_markup_in_a_prompt_shows_as_itself(detcheck, tmp_path):
    engine = ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)])
    prompts = ("[bold]:smile: \x1b[31m?", "[/nope]")
    run = write(tmp_path / "run", engine, prompts=prompts)
    result = detcheck("gate", run)
    assert result.code in (0, 1)
    assert "[/nope]" in result.out
    assert "[bold]:smile: \\x1b[31m?" in result.out
    assert "\x1b" not in result.out


@pytest.mark.parametrize("no_color", [True, False])
def test_colour_is_for_terminals_that_want_it(program, good, no_color):
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    if no_color:
        environment["NO_COLOR"] = "1"
    coloured = "\x1b[1;32m" in program("gate", good, env=environment).out
    assert coloured is not no_color


def test_a_thousand_completions_are_judged_in_three_seconds_without_torch(program, tmp_path):
    planted = [Planted(p, p % 7, min_batch_size=2, rate=0.2) for p in range(5, 95, 3)]
    engine = ScriptedEngine(planted, num_tokens=100)
    sizes = {"completions": 500, "batch_sizes": (1, 4, 8, 16), "max_new_tokens": 100}
    run = write(tmp_path / "run", engine, **sizes)
    start = child_seconds()
    result = program("gate", run, "-k", "stock", "--json")
    assert child_seconds() - start < 3
    assert json.loads(result.out)["prompts"][0]["distinct"] > 50


def test_judging_imports_no_torch(good, program):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    err = program("gate", good, env=environment).err
    assert "detcheck.gate.verdict" in err
    for heavy in (" torch\n", " transformers\n", " matplotlib\n"):
        assert heavy not in err
