"""`detcheck run`: what it prints where, and one clear sentence for every input that is bad."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from asking import conditions_of
from recorded import small_experiment
from sweeps import few

from detcheck import Experiment, InProcess, load
from detcheck.engines.scripted import Planted
from detcheck.errors import OutOfMemory
from detcheck.report.reproduce import command

from .conftest import SCRIPTED

ROW = (
    *("prompt", "kernels", "completions", "failed", "distinct", "most_common"),
    *("first_divergence", "flips", "batch_evidence", "tokens_per_second", "relative_cost"),
    *("seeds", "distinct_within_seed"),
)


# What it prints


def test_json_is_the_contract(program, tmp_path):
    result = program(*SCRIPTED, "-p", "Why?", "-p", "How?", "-o", "run", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert list(document) == ["run", "summary", "answers"]
    assert document["run"] == "run"
    assert [(row["prompt"], row["kernels"]) for row in document["summary"]] == [
        (prompt, kernels) for prompt in ("Why?", "How?") for kernels in ("stock", "batch-invariant")
    ]
    for row in document["summary"]:
        assert tuple(row) == ROW
        assert (row["completions"], row["distinct"], row["first_divergence"]) == (12, 1, None)
    assert load(tmp_path / "run").complete


@pytest.mark.sweep
def test_without_a_terminal_there_are_no_bars_and_no_colours(program):
    result = program(*SCRIPTED, "-o", "run", "--json")
    asked = conditions_of(small_experiment(completions=12, batch_sizes=(1, 4)))
    assert result.err.splitlines() == [
        "run directory: run",
        *(
            f"{condition.condition_id}: {condition.completions} of {condition.completions} "
            "completions, distinct so far: 1, 1,000 tokens/s"
            for condition in asked
        ),
        "kept in run; see it: detcheck report run",
    ]
    assert "\x1b" not in result.out + result.err


def test_commands_to_paste_quote_the_path(detcheck, scripted):
    scripted(fail_rate=1.1)
    result = detcheck(*SCRIPTED, "-o", "my run's")
    quoted = shlex.quote("my run's")
    assert f"detcheck report {quoted}\n" in result.err
    again = detcheck(*SCRIPTED, "-o", "my run's")
    assert f"--resume {quoted}." in again.err


def test_the_table_shows_what_was_planted(detcheck, scripted):
    scripted(Planted(5, 3, min_batch_size=4))
    result = detcheck(*SCRIPTED, "-o", "run")
    assert result.code == 0
    stock = next(line.split() for line in result.out.splitlines() if line.startswith("stock"))
    assert stock[:3] == ["stock", "12", "2"]
    assert "tie" in result.out
    assert "Tell me about Richard Feynman" in result.out


def test_json_is_all_there_is_on_stdout(detcheck, scripted):
    scripted(Planted(5, 3), fail_rate=0.2)
    result = detcheck(*SCRIPTED, "--json")
    document = json.loads(result.out)
    assert document["summary"][0]["failed"] > 0
    run = load(document["run"])
    assert re.fullmatch(r"results/runs/\d{8}-\d{6}-[0-9a-f]{6}", document["run"])
    assert [dict(row) for row in run.summary] == document["summary"]


def test_options_arrive_in_the_experiment_and_the_target(detcheck, scripted):
    scripted()
    Path("prompts.txt").write_text("Why?\nHow?\n", encoding="utf-8")
    options = {
        **{"--engine": "static", "-b": "2, 4", "-n": "9", "-k": "batch-invariant:matmul, stock"},
        **{"--traffic": "mixed", "--max-new-tokens": "7", "--temperature": "0.5", "--seeds": "2"},
        **{"--dtype": "float32", "--device": "cpu", "-p": "Who?", "--prompts": "prompts.txt"},
        **{"--load-seed": "4", "--repeat-trial": "3", "--revision": "main"},
    }
    flat = [word for pair in options.items() for word in pair]
    result = detcheck("run", "some/model", *flat, "--no-chat-template", "--trust-remote-code")
    assert result.code == 0, result.err
    (folder,) = Path("results/runs").iterdir()
    run = load(folder)
    assert run.experiment == Experiment(
        prompts=("Who?", "Why?", "How?"),
        kernels=("batch-invariant:matmul", "stock"),
        batch_sizes=(2, 4),
        completions=9,
        traffic="mixed",
        max_new_tokens=7,
        temperature=0.5,
        seeds=(0, 1),
        load_seed=4,
        repeat_trial=3,
    )
    assert run.target == InProcess(
        engine="static",
        model="some/model",
        revision="main",
        dtype="float32",
        device="cpu",
        chat_template=False,
        trust_remote_code=True,
    )
    again = shlex.split(command(run.experiment, run.target))
    assert detcheck(*again[1:], "-o", "again").code == 0
    assert (load("again").experiment, load("again").target) == (run.experiment, run.target)


@few(
    ("args", "seeds"),
    [
        (["--seeds", "3"], (0, 1, 2)),
        (["--seeds", "3,"], (3,)),
        (["--seeds", "5,7"], (5, 7)),
        (["--seed", "9"], (9,)),
        ([], (0,)),
    ],
)
def test_seeds(detcheck, scripted, args, seeds):
    scripted()
    result = detcheck("run", *args, "--temperature", "1", "-b", "1,2", "-n", "3", "-o", "run")
    assert result.code == 0, result.err
    assert load("run").experiment.seeds == seeds


def test_help_hides_the_scripted_engine(detcheck):
    result = detcheck("run", "--help")
    assert result.code == 0
    assert "scripted" not in result.out
    for option in ("--prompt", "--batch-sizes", "--kernels", "--resume", "--json"):
        assert option in result.out


# What could not be measured


def test_ctrl_c_is_3_and_says_how_to_go_on(detcheck, scripted):
    scripted(fail_with={("p0/stock/b4", 1): KeyboardInterrupt()})
    result = detcheck(*SCRIPTED, "-o", "run", "--json")
    assert result.code == 3
    assert "interrupted: committed trials are kept." in result.err
    assert "not complete; go on with: detcheck run --resume run" in result.err
    assert "Traceback" not in result.err
    assert json.loads(result.out)["summary"][0]["completions"] > 0
    scripted()
    again = detcheck("run", "--resume", "run", "--json")
    assert again.code == 0
    assert [row["completions"] for row in json.loads(again.out)["summary"]] == [12, 12]


def test_out_of_memory_is_3_and_names_the_batch_size(detcheck, scripted):
    error = OutOfMemory("Out of memory at batch size 4; what was measured before is kept.")
    scripted(fail_with={("p0/stock/b4", 1): error})
    result = detcheck("run", "--engine", "scripted", "-b", "1,4,8", "-n", "24", "-o", "run")
    assert result.code == 3
    assert "p0/stock/b4: Out of memory at batch size 4; what was measured" in result.err
    assert "p0/stock/b8: Not tried: memory ran out at batch size 4 before." in result.err
    assert {record.kernels for record in load("run").conditions if record.error} == {"stock"}
    assert not load("run").complete


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform == "win32", reason="has no file size limits")
def test_a_full_disk_through_the_real_program(tmp_path, program):
    """Files may grow to 9,000 bytes only, which the system enforces as it does a full disk."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from detcheck.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *SCRIPTED, "-n", "64", "-o", "run"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (3, "")
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("error: Writing to run failed (file too large); the trials before")
    assert "Traceback" not in done.stderr
    assert 0 < len(load(tmp_path / "run").completions) < 128
    again = program("run", "--resume", "run", "--json")
    assert again.code == 0, again.err
    assert [row["completions"] for row in json.loads(again.out)["summary"]] == [64, 64]


def test_a_parser_adds_the_answers_to_the_table_and_to_json(detcheck, scripted):
    """The planted token is the sixth word of the larger batches."""
    scripted(Planted(5, 3, min_batch_size=4))
    Path("q.jsonl").write_text('{"prompt": "Why?", "answer": "lit", "id": "q1"}')
    options = (*SCRIPTED, "--prompts", "q.jsonl", "--answer", r"regex:^(?:\w+ ){5}(\w+)")
    shown = detcheck(*options, "-o", "shown")
    assert "answers, parsed by regex:" in shown.out
    assert "1 of 1" in shown.out
    document = json.loads(detcheck(*options, "-o", "json", "--json").out)
    stock, invariant = document["answers"]
    assert (stock["flips"], invariant["flips"]) == (1, 0)
    assert [one["answer"] for one in stock["flipped"][0]["answers"]].count("lit") == 1
    bare = json.loads(detcheck(*SCRIPTED, "-p", "Why?", "-o", "bare", "--json").out)
    assert bare["answers"] == []


def test_the_gate_takes_the_parser_of_the_run(detcheck, scripted):
    scripted(Planted(5, 3, min_batch_size=4))
    options = (*SCRIPTED, "-p", "Why?", "--answer", r"regex:^(?:\w+ ){5}(\w+)")
    assert detcheck(*options, "-o", "run").code == 0
    failed = detcheck("gate", "run", "-k", "stock", "--max-answer-flips", "0")
    assert failed.code == 1
    assert "The answer to prompt 1 changes with the load" in failed.out
    document = json.loads(
        detcheck("gate", "run", "-k", "stock", "--max-answer-flips", "0", "--json").out
    )
    assert document["answers"][0]["flips"] == 1
    powerless = detcheck("gate", "run", "-k", "stock", "--max-answer-flips", "1")
    assert (powerless.code, powerless.only_sentence) == (
        2,
        "error: --max-answer-flips is 1, which 1 prompt cannot exceed: lower it, or ask more "
        "prompts.\n",
    )
    unnamed = detcheck(*SCRIPTED, "-p", "How?", "-o", "unnamed")
    assert unnamed.code == 0
    refused = detcheck("gate", "unnamed", "-k", "stock", "--max-answer-flips", "0")
    assert (refused.code, refused.err) == (
        2,
        "error: To judge answers, give a parser by --answer, such as number.\n",
    )


def test_a_report_may_be_parsed_by_another_parser(detcheck, good):
    assert detcheck("report", good, "--format", "md", "--answer", "last-line").code == 0
    assert "Does the answer change?" in (good / "report.md").read_text()
    assert detcheck("report", good, "--format", "md", "--answer", "digits").code == 2
