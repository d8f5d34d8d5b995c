"""An experiment is also a file: `run --config`, files that are found, and `--print-config`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from detcheck.rundir import load

FILE = """
[experiment]
prompts = ["Why?"]
completions = 12
batch-sizes = [1, 4]
max-new-tokens = 12

[target]
engine = "scripted"
"""


def write(path: str, text: str = FILE) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_the_file_that_is_named_is_asked(detcheck):
    file = write("elsewhere/mine.toml")
    result = detcheck("run", "--config", file, "-o", "run")
    assert result.code == 0, result.err
    assert f"settings: [experiment] and [target] of {file}" in result.err
    run = load("run")
    assert (run.experiment.prompts, run.experiment.batch_sizes) == (("Why?",), (1, 4))
    assert run.target.engine == "scripted"


@pytest.mark.parametrize("name", ["detcheck.toml", "pyproject.toml"])
def test_a_file_is_found_by_walking_up_to_the_repositorys_root(detcheck, monkeypatch, name):
    prefix = "tool.detcheck." if name == "pyproject.toml" else ""
    write(
        f"repository/{name}",
        FILE.replace("[", f"[{prefix}", 1).replace("[target", f"[{prefix}target"),
    )
    Path("repository/.git").mkdir()
    below = Path("repository/a/b")
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert detcheck("run", "-o", "run").code == 0
    assert load("run").experiment.completions == 12


def test_a_file_with_other_sections_below_hides_nothing(detcheck, monkeypatch):
    """Neither the experiment of the root, nor its gate in the printed file."""
    write("repository/detcheck.toml", FILE)
    Path("repository/.git").mkdir()
    write("repository/a/detcheck.toml", "[gate]\nmax-distinct = 2\n")
    monkeypatch.chdir("repository/a")
    assert detcheck("run", "-o", "run").code == 0
    assert load("run").target.engine == "scripted"
    printed = tomllib.loads(detcheck("run", "--print-config").out)
    assert printed["target"]["engine"] == "scripted"
    assert printed["gate"] == {"max_distinct": 2}


def test_nothing_above_the_repositorys_root_is_read(detcheck, monkeypatch):
    write("detcheck.toml", "[experiment]\ncompletions = 'wrong'\n")
    Path("repository/.git").mkdir(parents=True)
    monkeypatch.chdir("repository")
    result = detcheck("run", "--engine", "scripted", "-o", "run", "--max-new-tokens", "4")
    assert result.code == 0
    assert "settings:" not in result.err


def test_options_override_the_file(detcheck):
    write("detcheck.toml")
    assert detcheck("run", "-n", "6", "-p", "How?", "-b", "1,2", "-o", "run").code == 0
    experiment = load("run").experiment
    assert (experiment.completions, experiment.prompts) == (6, ("How?",))
    assert (experiment.batch_sizes, experiment.max_new_tokens) == ((1, 2), 12)


def test_prompts_may_be_in_a_file_beside_it(detcheck):
    write("questions.txt", "One?\nTwo?\n")
    write("detcheck.toml", FILE.replace('prompts = ["Why?"]', 'prompts-file = "questions.txt"'))
    assert detcheck("run", "-o", "run").code == 0
    assert load("run").experiment.prompts == ("One?", "Two?")


def test_answers_and_chats_of_a_prompts_file_survive_the_printed_file(detcheck):
    write("q.jsonl", '{"prompt": "One?", "answer": 1, "id": "a", "seen": {"in": null}}\n')
    options = ("--engine", "scripted", "--prompts", "q.jsonl", "--answer", "number")
    write("printed.toml", detcheck("run", *options, "--print-config").out)
    again = detcheck("run", "--config", "printed.toml", "--print-config")
    assert again.out == Path("printed.toml").read_text()
    document = tomllib.loads(again.out)["experiment"]
    assert (document["answer"], document["items"]) == (
        "number",
        [{"id": "a", "answer": "1", "fields": {"seen": {}}}],
    )


def test_text_that_a_model_was_sent_gets_no_chat_template(detcheck):
    sample = {"doc_id": 1, "target": "3", "arguments": {"gen_args_0": {"arg_0": "1 + 2 ="}}}
    write("samples.jsonl", json.dumps(sample))
    write("detcheck.toml", "[experiment]\nprompts-file = 'samples.jsonl'\n")
    for options in (("--prompts", "samples.jsonl"), ()):
        printed = detcheck("run", *options, "--print-config")
        document = tomllib.loads(printed.out)
        assert document["experiment"]["prompts"] == ["1 + 2 ="]
        assert document["target"]["chat_template"] is False
    assert "no chat template is applied" in detcheck("run", "--prompts", "samples.jsonl", "-n0").err


def test_the_printed_file_asks_the_same(detcheck):
    options = (
        "--engine",
        "scripted",
        "-p",
        'A "quoted" é?',
        "-n",
        "9",
        "-b",
        "1,2,4",
        "-k",
        "stock",
    )
    printed = detcheck("run", *options, "--max-new-tokens", "5", "--print-config")
    assert printed.code == 0
    document = tomllib.loads(printed.out)
    assert document["experiment"]["completions"] == 9
    assert document["target"]["engine"] == "scripted"
    assert not Path("results").exists()
    write("again.toml", printed.out)
    assert detcheck("run", "--config", "again.toml", "-o", "one").code == 0
    assert detcheck("run", *options, "--max-new-tokens", "5", "-o", "two").code == 0
    one, two = load("one"), load("two")
    assert (one.experiment, one.target) == (two.experiment, two.target)


def test_the_gate_section_is_kept_when_it_is_printed(detcheck):
    write("detcheck.toml", FILE + "\n[gate]\nmax-distinct = 2\nkernels = 'stock'\n")
    document = tomllib.loads(detcheck("run", "--print-config").out)
    assert document["gate"]["max_distinct"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[experiment]\nbatchsizes = [1]\n", "unknown key 'batchsizes' in [experiment] (did you"),
        ("[experiments]\n", "unknown section [experiments] (did you mean 'experiment'?)"),
        ("[experiment]\ncompletions = 'x'\n", "experiment.completions: expected a whole number"),
        ("[experiment]\nprompts = 'Why?'\n", "experiment.prompts: expected a list"),
        ("[experiment]\ncompletions = 0\n", "--completions must be at least 1, not 0."),
        ("[target]\nengine = 'magic'\n", "'magic'"),
        ("[target]\nengine = 'static'\ntensor-parallel = [1]\n", "is for the engine vllm."),
        ("nonsense", "is not valid TOML"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_sentence(detcheck, text, words):
    write("detcheck.toml", text)
    result = detcheck("run", "-o", "run")
    assert result.code == 2
    assert words in result.err.splitlines()[-1]
    assert not Path("run").exists()


def test_a_run_is_resumed_without_the_file(detcheck):
    write("detcheck.toml")
    assert detcheck("run", "-o", "run").code == 0
    write("detcheck.toml", FILE.replace("completions = 12", "completions = 99"))
    assert detcheck("run", "--resume", "run").code == 0
    assert load("run").experiment.completions == 12
    both = detcheck("run", "--resume", "run", "--config", "detcheck.toml")
    assert (both.code, "leave --out and --config out" in both.err) == (2, True)
