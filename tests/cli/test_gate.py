"""`detcheck gate`: verdicts as exit codes, and everything that is a usage error instead."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gate.runs import write
from sweeps import few
from timing import child_seconds

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .damage import (
    drop_run_file,
    dropped_condition,
    edited_answer,
    edited_count,
    half_json,
    missing_file,
    newer_schema,
    other_json,
    smuggled_prompt_index,
    truncate,
)


def test_pass_through_the_real_program(program, good):
    result = program("gate", good, "--max-distinct", "1", "--kernels", "batch-invariant")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("PASS")
    assert "0 of 32 comparisons differed: with 95 % confidence" in result.out
    assert result.out.count("\n") < 24, "one screen"


@pytest.mark.sweep
def test_fail_through_the_real_program(program, good):
    result = program("gate", good, "-k", "stock", "--json")
    assert (result.code, result.err) == (1, "")
    document = json.loads(result.out)
    assert document["verdict"] == "fail"
    assert "2 distinct answers" in document["reasons"][0]


@pytest.mark.sweep
def test_inconclusive_through_the_real_program(program, tmp_path):
    run = write(tmp_path / "run", ScriptedEngine(observed_share=0.5))
    result = program("gate", run)
    assert (result.code, result.err) == (3, "")
    assert result.out.startswith("INCONCLUSIVE")


@pytest.mark.sweep
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
    judged = document["judged"]
    assert judged["model"] == "SmolLM2-135M-Instruct (embedded)"
    assert {"revision", "weights_digest", "dtype"} <= judged.keys()
    assert (judged["engine"], judged["target"]) == ("continuous", "cpu")
    assert (judged["kernels"], judged["levels"]) == ([BATCH_INVARIANT], ["bits"])
    assert (judged["prompts"], judged["completions"], judged["batch_sizes"]) == (1, 48, [1, 4, 8])
    assert judged["observed_batches"] == [1, 4, 8]
    assert (judged["comparisons"], judged["max_new_tokens"]) == (32, 12)
    assert judged["bound"] == pytest.approx(0.0894, abs=1e-4)
    assert judged["run_id"] == "good"
    assert judged["age_s"] > 0
    assert judged["control"] == "stock"


def test_the_verdict_names_what_was_judged(detcheck, good):
    lines = detcheck("gate", good).out.splitlines()
    names = [line.split(":")[0].strip() for line in lines if line.startswith("  ")]
    facts = ["model", "computed by", "kernels", "asked", "observed", "compared", "run", "control"]
    assert [name for name in names if name in facts] == facts


def test_a_suite_ends_with_one_line(detcheck, tmp_path):
    engine = ScriptedEngine([Planted(5, 9, kernels=BATCH_INVARIANT)])
    prompts = tuple(f"Question {number}?" for number in range(8))
    run = write(tmp_path / "suite", engine, prompts=prompts)
    result = detcheck("gate", run)
    failed = sum(line.startswith("  fail: ") for line in result.out.splitlines())
    assert result.out.splitlines()[-1] == f"fail: 8 prompts: {8 - failed} pass, {failed} fail"
    assert "note: 5 more of control (--json has all)" in result.out


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
    assert "the baseline does not accept" in result.out
    assert "they diverge at token 5" in result.out


def test_the_baseline_of_pyproject_is_relative_to_it(detcheck, good, bad):
    Path("pyproject.toml").write_text(
        "[tool.detcheck.gate]\nbaseline = '../good'\n", encoding="utf-8"
    )
    assert detcheck("gate", bad).code == 1


def test_the_settings_of_the_root_are_found_from_a_folder_below(detcheck, good, bad, monkeypatch):
    Path(".git").mkdir()
    Path("pyproject.toml").write_text(
        "[tool.detcheck.gate]\nbaseline = '../good'\n", encoding="utf-8"
    )
    root = Path.cwd()
    Path("a/b").mkdir(parents=True)
    monkeypatch.chdir("a/b")
    result = detcheck("gate", bad)
    assert result.code == 1
    assert "the baseline does not accept" in result.out
    assert result.err == f"settings: [gate] of {root / 'pyproject.toml'}\n"


def test_an_experiment_file_below_does_not_hide_the_baseline_of_the_root(
    detcheck, good, bad, monkeypatch
):
    Path(".git").mkdir()
    Path("pyproject.toml").write_text(
        "[tool.detcheck.gate]\nbaseline = '../good'\n", encoding="utf-8"
    )
    Path("a").mkdir()
    Path("a/detcheck.toml").write_text("[experiment]\ncompletions = 40\n", encoding="utf-8")
    monkeypatch.chdir("a")
    assert "the baseline does not accept" in detcheck("gate", bad).out


def test_an_empty_model_of_a_file_is_named_as_its_key(detcheck, good):
    Path("detcheck.toml").write_text('[gate]\nmodel = ""\n', encoding="utf-8")
    result = detcheck("gate", good)
    assert result.code == 2
    assert "detcheck.toml: gate.model is empty" in result.only_sentence


def test_the_sections_of_other_commands_are_known_and_checked(detcheck, good):
    text = "[experiment]\ncompletions = 40\n[target]\nengine = 'static'\n"
    Path("detcheck.toml").write_text(text, encoding="utf-8")
    result = detcheck("gate", good)
    assert (result.code, result.err) == (0, "")
    Path("detcheck.toml").write_text("[experiment]\ncompletion = 40\n", encoding="utf-8")
    assert "did you mean 'completions'?" in detcheck("gate", good).only_sentence


def test_a_settings_file_may_be_named(detcheck, good, tmp_path):
    (tmp_path / "other.toml").write_text("[gate]\nkernels = 'stock'\n", encoding="utf-8")
    assert detcheck("gate", good, "--config", tmp_path / "other.toml").code == 1
    result = detcheck("gate", good, "--config", tmp_path / "nowhere.toml")
    assert "There is no file" in result.only_sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.detcheck.gates]\nbaseline = 'x'\n", "did you mean 'gate'?"),
        ("[tool.detcheck]\nbaseline = 'x'\n", "'baseline' belongs in [tool.detcheck.gate]"),
        ("[tool.detcheck.gate]\nmax-distict = 1\n", "did you mean 'max-distinct'?"),
        ("[tool.detcheck.gate]\nmax-distinct = '1'\n", "tool.detcheck.gate.max-distinct: expected"),
        ("[tool.detcheck.gate]\nmax-distinct = 0\n", "pyproject.toml: "),
        ("[tool.detcheck.gate]\nlevel = 'bit'\n", "did you mean 'bits'?"),
        ("[tool.detcheck.gate\n", "pyproject.toml is not valid TOML"),
    ],
)
def test_settings_that_cannot_be_meant_are_a_usage_error(detcheck, good, text, words):
    Path("pyproject.toml").write_text(text, encoding="utf-8")
    result = detcheck("gate", good)
    assert result.code == 2
    assert words in result.only_sentence


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
        (["--max-distinct", "0"], " must be at least 1, not 0."),
        (["--max-distinct", "-3"], " must be at least 1, not -3."),
        (["--max-distinct", "39"], "cannot exceed with 32 comparisons"),
        (["--min-comparisons", "3"], " must be at least 20, not 3"),
        (["--level", "bit"], "Unknown level 'bit'"),
        (["--level", "answer"], "give a parser by --answer"),
        (["--model", ""], " is empty"),
        (["--max-age", "soon"], "must be a duration such as"),
        (["--control", "nowhere"], "no run directory nowhere"),
        (["--kernels", "fast"], "Unknown kernels 'fast'"),
        (["--kernels", ""], "names none"),
        (["--kernels", "batch-invariant:matmul"], "The run has no batch-invariant:matmul"),
        (["--github-summary"], "GITHUB_STEP_SUMMARY"),
        (["--baseline", "nowhere"], "There is no baseline nowhere"),
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


def test_a_run_of_another_model_or_age_is_inconclusive(detcheck, good):
    assert detcheck("gate", good, "--model", "Qwen/Qwen3-8B").code == 3
    assert detcheck("gate", good, "--model", "SmolLM2-135M-Instruct").code == 0
    result = detcheck("gate", good, "--max-age", "2h")
    assert result.code == 3
    assert "old, and at most 2h is allowed" in result.out


def test_planted_answers_are_inconclusive(detcheck, tmp_path):
    result = detcheck("gate", write(tmp_path / "run", engine="scripted"))
    assert result.code == 3
    assert "planted" in result.out


def test_a_control_may_come_from_another_run(detcheck, tmp_path):
    run = write(tmp_path / "run", kernels=(BATCH_INVARIANT,))
    stock = write(tmp_path / "stock", kernels=(STOCK,))
    assert detcheck("gate", run, "--require-control").code == 3
    assert detcheck("gate", run, "--require-control", "--control", stock).code == 0


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
@few("command", ["gate", "compare"])
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


@pytest.mark.sweep
@pytest.mark.parametrize("no_color", [True, False])
def test_colour_is_for_terminals_that_want_it(program, good, no_color):
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    if no_color:
        environment["NO_COLOR"] = "1"
    coloured = "\x1b[1;32m" in program("gate", good, env=environment).out
    assert coloured is not no_color


@pytest.mark.sweep
def test_a_thousand_completions_are_judged_in_three_seconds_without_torch(program, tmp_path):
    planted = [Planted(p, p % 7, min_batch_size=2, rate=0.2) for p in range(5, 95, 3)]
    engine = ScriptedEngine(planted, num_tokens=100)
    sizes = {"completions": 500, "batch_sizes": (1, 4, 8, 16), "max_new_tokens": 100}
    run = write(tmp_path / "run", engine, **sizes)
    start = child_seconds()
    result = program("gate", run, "-k", "stock", "--json")
    assert child_seconds() - start < 3
    assert json.loads(result.out)["prompts"][0]["distinct"] > 50


@pytest.mark.sweep
def test_judging_imports_no_torch(good, program):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    err = program("gate", good, env=environment).err
    assert "detcheck.gate.verdict" in err
    for heavy in (" torch\n", " transformers\n", " matplotlib\n"):
        assert heavy not in err
