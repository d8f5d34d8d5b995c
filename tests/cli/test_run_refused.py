"""`detcheck run`: one clear sentence and the right exit code for every bad input."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from detcheck import load

from .conftest import SCRIPTED
from .damage import edit, edited_answer, newer_schema, truncate

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
        (["-n", "1", "-b", "1,2"], "larger than the 1 completion asked"),
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


@pytest.mark.sweep
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


@pytest.mark.sweep
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
    assert "The embedded model is not installed: run `detcheck model fetch" in result.only_sentence


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
