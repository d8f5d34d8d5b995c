"""A script of a server's burst: fails if its answers depend on the load, else passes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detcheck.engines.openai.connection import Connection
from detcheck.errors import UsageError
from detcheck.prompts import ChatMessage, PromptItem, chat_text
from detcheck.repro.endpoint import write_burst
from detcheck.rundir import Run

KEY = "sk-secret-0123456789"
Make = Callable[..., Any]


def script_of(run: Run, folder: Path) -> Path:
    return write_burst(run, folder)[0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"chat_template": False}, marks=pytest.mark.slow),
        pytest.param({"traffic": "mixed"}, marks=pytest.mark.slow),
    ],
)
def test_the_script_shows_both_answers_of_a_server_that_depends_on_its_load(
    fields: dict[str, Any], serve: Make, measure: Make, alone: Make, tmp_path: Path
) -> None:
    server = serve(differ_above=5, token_s=0.005)
    script = script_of(measure(server, **fields).run, tmp_path / "repro")
    done = alone(script)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    # A burst that met a busy machine may have been no batch: the next one is.
    first = next(at for at, line in enumerate(lines) if "diverge at character" in line)
    assert lines[first + 1].split(":")[1] != lines[first + 2].split(":")[1]
    server.behaviour.differ_above = None
    again = alone(script)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "no answer differs in 5 bursts of 8" in again.stdout


def test_the_script_sends_what_the_run_sent(
    serve: Make, measure: Make, alone: Make, tmp_path: Path
) -> None:
    server = serve(differ_above=4, token_s=0.005, refuses=("return_token_ids",))
    run = measure(server).run
    # The checks after the run ask other prompts.
    sent = [body for body in server.behaviour.seen if run.experiment.prompts[0] in str(body)][-1]
    server.behaviour.seen.clear()
    alone(script_of(run, tmp_path / "repro"))
    assert server.behaviour.seen[0] == sent
    assert server.behaviour.most_in_flight == 8


@pytest.mark.sweep
def test_a_chat_is_sent_as_its_messages(
    serve: Make, measure: Make, alone: Make, tmp_path: Path
) -> None:
    chat = (ChatMessage("system", "Be short."), ChatMessage("user", "Why?"))
    asked = {"prompts": (chat_text(chat),), "items": (PromptItem(messages=chat),)}
    server = serve(differ_above=4, token_s=0.005)
    run = measure(server, **asked).run
    server.behaviour.seen.clear()
    alone(script_of(run, tmp_path / "repro"))
    assert server.behaviour.seen[0]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
    ]


def test_no_secret_is_written_and_a_key_comes_from_the_environment(
    serve: Make, measure: Make, alone: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(differ_above=4, token_s=0.005, key=KEY)
    run = measure(server, connection=Connection(api_key_env="MY_KEY")).run
    paths = write_burst(run, tmp_path / "repro")
    assert not any(KEY in path.read_text() for path in paths)
    refused = alone(paths[0])
    assert refused.returncode == 2
    assert "401" in refused.stderr
    assert alone(paths[0], API_KEY=KEY).returncode == 1


def test_a_servers_words_are_neither_code_nor_markup(
    serve: Make, measure: Make, alone: Make, tmp_path: Path
) -> None:
    name = 'toy"""\nprint("run")\n"""\\ `<b>` ```'
    server = serve(differ_above=4, token_s=0.005, models=(name,))
    paths = write_burst(measure(server).run, tmp_path / "repro")
    done = alone(paths[0])
    assert done.returncode == 1, done.stderr
    assert "run" not in done.stdout
    assert server.behaviour.seen[-1]["model"] == name
    issue = paths[2].read_text()
    assert "<b>" not in issue.partition("## Reproduce")[0]
    fence = next(line for line in issue.splitlines() if line.endswith("python"))
    assert fence == "````python"


@pytest.mark.sweep
def test_a_server_that_is_gone_is_told_apart(
    serve: Make, measure: Make, alone: Make, tmp_path: Path
) -> None:
    run = measure(serve(differ_above=4, token_s=0.005)).run
    script = script_of(run, tmp_path / "repro")
    text = script.read_text()
    script.write_text(text.replace(run.target.endpoints[0], "http://127.0.0.1:9/v1"))
    done = alone(script)
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.sweep
def test_the_script_needs_the_standard_library_only(
    serve: Make, measure: Make, tmp_path: Path
) -> None:
    run = measure(serve(differ_above=4, token_s=0.005)).run
    paths = write_burst(run, tmp_path / "repro")
    assert [path.name for path in paths] == ["repro.py", "environment.txt", "issue.md"]
    tree = ast.parse(paths[0].read_text())
    names = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names <= sys.stdlib_module_names
    assert "in the burst: …" in paths[2].read_text()


@pytest.mark.sweep
def test_the_script_asks_the_server_whose_answers_depend_on_its_load(
    serve: Make, measure: Make, alone: Make, tmp_path: Path
) -> None:
    """The servers also differ from each other: a burst cannot show that."""
    steady, moving = serve(differ_above=0), serve(differ_above=5, token_s=0.005)
    script = script_of(measure(steady, moving).run, tmp_path / "repro")
    assert moving.url in script.read_text()
    assert steady.url not in script.read_text()
    done = alone(script)
    assert done.returncode == 1, done.stdout + done.stderr


@pytest.mark.sweep
def test_servers_that_only_differ_from_each_other_are_no_burst(
    serve: Make, measure: Make, tmp_path: Path
) -> None:
    run = measure(serve(), serve(differ_above=0)).run
    with pytest.raises(UsageError, match="diverge between its 2 places, and at none of them with"):
        write_burst(run, tmp_path / "repro")
    assert not (tmp_path / "repro").exists()


def test_equal_answers_are_nothing_to_reproduce(serve: Make, measure: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No answers diverge"):
        write_burst(measure(serve()).run, tmp_path / "repro")
    assert not (tmp_path / "repro").exists()
