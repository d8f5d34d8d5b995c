"""`detcheck run`: what it prints where, and one clear sentence for every input that is bad."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from asking import conditions_of
from recorded import small_experiment

from detcheck import Experiment, InProcess, load, runner
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import OutOfMemory
from detcheck.report.reproduce import command

from .test_gate import edit, edited_answer, newer_schema, truncate

SCRIPTED = ("run", "--engine", "scripted", "-b", "1,4", "-n", "12", "--max-new-tokens", "12")
ROW = (
    *("prompt", "kernels", "completions", "failed", "distinct", "most_common"),
    *("first_divergence", "flips", "batch_evidence", "tokens_per_second", "relative_cost"),
    *("seeds", "distinct_within_seed"),
)


@pytest.fixture
def scripted(monkeypatch) -> Callable[..., None]:
    """Returns a function: what the scripted engine is made with from now on."""

    def scripted(*planted: Planted, **options) -> None:
        monkeypatch.setattr(runner, "open_engine", lambda *_: ScriptedEngine(planted, **options))

    return scripted


@pytest.fixture
def stopped(detcheck, scripted) -> Path:
    """A run that was interrupted half way."""
    scripted(fail_with={("p0/stock/b4", 1): KeyboardInterrupt()})
    assert detcheck(*SCRIPTED, "-o", "stopped").code == 3
    scripted()
    return Path("stopped")


# What it prints


def test_json_is_the_contract(program, tmp_path):
    result = program(*SCRIPTED, "-p", "Why?", "-p", "How?", "-o", "run", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert list(document) == ["run", "summary"]
    assert document["run"] == "run"
    assert [(row["prompt"], row["kernels"]) for row in document["summary"]] == [
        (prompt, kernels) for prompt in ("Why?", "How?") for kernels in ("stock", "batch-invariant")
    ]
    for row in document["summary"]:
        assert tuple(row) == ROW
        assert (row["completions"], row["distinct"], row["first_divergence"]) == (12, 1, None)
    assert load(tmp_path / "run").complete


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


@pytest.mark.parametrize(
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


# Bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-b", "0"], "Batch sizes must be at least 1, not 0."),
        (["-b", "4,-2"], "Batch sizes must be at least 1, not -2."),
        (["-b", "many"], "Batch sizes are whole numbers separated by commas"),
        (["-b", "1.5"], "such as 1,4,8, not '1.5'."),
        (["-b", ""], "Batch sizes are whole numbers"),
        (["-b", "1,,4"], "Batch sizes are whole numbers"),
        (
            ["-b", "1,64"],
            "raise --completions to at least 64",
        ),
        (["-b", "4,1,4"], "A batch size is given twice: list each once."),
        (["-n", "0"], "--completions must be at least 1, not 0."),
        (["-n", "-5"], "--completions must be at least 1, not -5."),
        (["-n", "ten"], "Invalid value for '-n' / '--completions'"),
        (["-n", "1", "-b", "1,2"], "larger than the 1 completions"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, not 0."),
        (["--temperature", "-1"], "--temperature must be 0 or more"),
        (["--temperature", "nan"], "--temperature must be 0 or more"),
        (
            ["--engine", "static", "--dtype", "int8"],
            "Unknown dtype 'int8': choose one of auto",
        ),
        (
            ["--engine", "static", "--device", "tpu"],
            "Unknown device 'tpu': choose one of",
        ),
        (["--engine", "warp"], "Unknown engine 'warp'"),
        (["--seed", "1", "--seeds", "2"], "--seed and --seeds are both given"),
        (["--seeds", "2"], "At temperature 0 a seed changes nothing: raise --temperature"),
        (["--tensor-parallel", "2"], "--tensor-parallel is for the engine vllm."),
        (["--traffic", "heavy"], "Unknown traffic 'heavy'"),
        (["-k", "fast"], "Unknown kernels 'fast': use stock, batch-invariant"),
        (["-k", "batch-invariant:nothing"], "Unknown op family 'nothing'"),
        (["-k", "stock,stock"], "Give each kernels setting once"),
        (["-k", ""], "Unknown kernels ''"),
        (["-p", ""], "Prompt 1 is empty: say what to ask."),
        (["-p", "Why?", "-p", " \n"], "Prompt 2 is empty"),
        (["-p", "Why?", "-p", "Why?"], "Prompts 1 and 2 are the same"),
        (["-p", b"\xff".decode(errors="surrogateescape")], "Prompt 1 is not valid Unicode text"),
        (["--prompts", "nowhere.txt"], "There is no prompts file nowhere.txt: check the path."),
        (["--prompts", "empty.txt"], "empty.txt holds no prompts"),
        (["--prompts", "broken.jsonl"], "broken.jsonl line 2 is not valid JSON"),
        (["--prompts", "latin1.txt"], "latin1.txt line 2 is not UTF-8 text"),
        (["--prompts", "."], "cannot be read"),
        (["-o", "taken"], "taken is not empty: choose another --out, or go on with --resume"),
        (["-o", "empty.txt"], "empty.txt is not empty"),
        (["-o", "empty.txt/run"], "empty.txt/run cannot be written"),
        (["--resume", "nowhere"], "There is no run directory nowhere: check the path."),
        (["--resume", "taken"], "taken holds no run.json: it is not a run directory."),
        (["--resume", "taken", "-o", "run"], "--resume takes everything from its own folder"),
        (["--nonsense"], "No such option: --nonsense"),
        (["a", "b"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(detcheck, args, words):
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("precious", encoding="utf-8")
    Path("empty.txt").write_text("", encoding="utf-8")
    Path("broken.jsonl").write_text('"fine"\n{"prompt": \n', encoding="utf-8")
    Path("latin1.txt").write_bytes("fine\nIçi".encode("latin-1"))
    before = sorted(Path().rglob("*"))
    base = ["run"] if "--resume" in args else list(SCRIPTED)
    result = detcheck(*base, *args)
    assert result.code == 2
    assert words in result.only_sentence
    assert result.err.startswith("error: ")
    assert sorted(Path().rglob("*")) == before, "something was left behind"


def test_bad_input_through_the_real_program(program):
    result = program("run", "-b", "0")
    assert result.code == 2
    assert result.only_sentence == "error: Batch sizes must be at least 1, not 0.\n"


def test_a_folder_that_may_not_be_written(detcheck, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    result = detcheck(*SCRIPTED, "-o", "run")
    assert result.code == 2
    assert result.only_sentence == (
        "error: run cannot be written (permission denied): choose another --out.\n"
    )


# Models that are not there


def test_a_model_that_does_not_exist_fails_fast(program, tmp_path):
    """A machine without a network: an address where nobody listens stands for the hub."""
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    env |= {"PATH": "", "HOME": str(tmp_path)}
    start = time.perf_counter()
    result = program("run", "no/such-model", "-o", "run", env=env)
    assert time.perf_counter() - start < 15
    assert result.code == 2
    assert result.only_sentence == (
        "error: no/such-model is not on this machine and the hub cannot be reached: check the "
        "name and the network, give a local folder, or leave MODEL out for the embedded model.\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "model holds no config.json"),
        (["config.json"], "model holds no weights"),
        (["config.json", "model.safetensors"], "model holds no tokenizer that can be read"),
    ],
)
def test_a_folder_that_holds_no_model(detcheck, files, words):
    Path("model").mkdir()
    for name in files:
        Path("model", name).write_text("{}", encoding="utf-8")
    result = detcheck("run", "model", "-o", "run")
    assert result.code == 2
    assert words in result.only_sentence
    assert not Path("run").exists()


def test_no_embedded_model(detcheck, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "llm" in name else find_spec(name)
    )
    result = detcheck("run", "-o", "run")
    assert result.code == 2
    assert "The embedded model is not installed: run `pip install" in result.only_sentence


def test_a_gpu_that_is_not_there(detcheck, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = detcheck("run", "--device", "cuda", "-o", "run")
    assert result.code == 2
    assert "--device cuda: PyTorch sees no CUDA GPU here; use --device cpu." in result.only_sentence


# Runs that cannot be resumed


def edited_prompt(run: Path) -> None:
    edit(run / "run.json", b"Feynman", b"Dirac")


def no_completions(run: Path) -> None:
    (run / "completions.jsonl").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "completions.jsonl is truncated"),
        (newer_schema, "has schema 99, newer than this detcheck reads"),
        (edited_answer, "variants.jsonl was changed after it was written"),
        (edited_prompt, "run.json was changed after it was written"),
        (no_completions, "completions.jsonl is missing"),
    ],
)
def test_a_damaged_run_is_not_resumed(detcheck, stopped, damage, words):
    damage(stopped)
    before = {file.name: file.read_bytes() for file in stopped.iterdir()}
    result = detcheck("run", "--resume", stopped)
    assert result.code == 2
    assert words in result.only_sentence
    assert {file.name: file.read_bytes() for file in stopped.iterdir()} == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-n", "16"], "stopped was run with completions 12, not 16: resume it without that"),
        (["-b", "1,2"], "stopped was run with batch sizes 1, 4, not 1, 2"),
        (["-p", "Why?"], "stopped was run with prompts Tell me about Richard Feynman, not Why?"),
        (["other/model"], "MODEL is for the engine continuous or static or openai or vllm"),
        (["--engine", "static"], "stopped was run with engine scripted, not static"),
        (["-b", "64"], "Batch size 64 is larger than the 12 completions"),
    ],
)
def test_a_changed_option_is_refused_on_resume(detcheck, stopped, args, words):
    result = detcheck("run", "--resume", stopped, *args)
    assert result.code == 2
    assert words in result.only_sentence


def test_the_same_options_may_be_repeated_on_resume(detcheck, stopped):
    assert detcheck(*SCRIPTED, "--resume", stopped).code == 0
    assert load(stopped).complete


def test_a_changed_environment_is_refused_on_resume(detcheck, stopped, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    result = detcheck("run", "--resume", stopped)
    assert result.code == 2
    assert "its environment has changed (MKL_CBWR unset → COMPATIBLE)" in result.only_sentence
