"""The consoles print what they are given, and JSON that any reader takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from detcheck.analysis.compare import PromptDivergence
from detcheck.cli import console


@pytest.fixture
def printed(capsys):
    def show(data) -> str:
        console.print_json(data)
        return capsys.readouterr().out

    return show


def test_json_takes_what_an_analysis_holds(printed):
    data = {
        "path": Path("a/b"),
        "count": np.int64(3),
        "array": np.array([1.0, np.nan]),
        "bound": float("inf"),
        "flag": True,
        "parting": PromptDivergence(3, "token", "a", "b", "c"),
        1: ("x", None),
    }
    assert json.loads(printed(data)) == {
        "path": "a/b",
        "count": 3,
        "array": [1.0, None],
        "bound": None,
        "flag": True,
        "parting": {"position": 3, "unit": "token", "context": "a", "left": "b", "right": "c"},
        "1": ["x", None],
    }


def test_json_is_ascii_whatever_the_model_said(printed):
    hostile = "\ud800 \x1b[2J \u202e é 😀"
    out = printed([hostile])
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == [hostile]


def test_lines_are_neither_wrapped_nor_read_as_markup(capsys):
    line = "[red]word " * 60
    console.print_line(line)
    assert capsys.readouterr().out == line + "\n"


def test_messages_go_to_stderr(capsys):
    console.print_line("careful", console=console.stderr)
    assert capsys.readouterr() == ("", "careful\n")


def test_bars_vanish_without_a_terminal(capsys):
    with Progress(console=console.stderr, disable=not console.stderr.is_terminal) as progress:
        progress.update(progress.add_task("x", total=2), advance=1)
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_left_to_main():
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed = console._Console(file=Closed())
    with pytest.raises(BrokenPipeError):
        closed.print("x")
