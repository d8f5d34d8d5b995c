"""The progress of a run on a terminal and without one."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from recorded import small_experiment
from rich.console import Console

from detcheck import run
from detcheck.cli import console, progress
from detcheck.cli.progress import ProgressListener
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import OutOfMemory
from detcheck.evidence import ModelIdentity
from detcheck.rundir import ConditionRecord


@pytest.fixture
def shown(monkeypatch):
    """Returns a function: whether there is a terminal -> where the progress is written to."""

    def shown(*, terminal: bool, width: int = 120) -> io.StringIO:
        target = io.StringIO()
        fake = Console(
            file=target,
            force_terminal=terminal,
            width=width,
            markup=False,
            emoji=False,
            color_system=None,
        )
        monkeypatch.setattr(progress, "stderr", fake)
        return target

    return shown


def measure(path: Path, engine: ScriptedEngine | None = None, **fields) -> None:
    experiment = small_experiment(**{"completions": 12, "batch_sizes": (1, 4), **fields})
    with ProgressListener() as listener:
        engine = engine or ScriptedEngine([Planted(5, 3, rate=0.5)])
        run(experiment, out=path, engine=engine, listener=listener)


def test_a_terminal_shows_a_bar_a_condition_and_what_is_known(shown, tmp_path):
    target = shown(terminal=True)
    measure(tmp_path / "run")
    out = target.getvalue()
    assert "loading the model …" in out
    for words in ("stock, batch size 1", "stock, batch size 4", "batch-invariant, batch size 4"):
        assert words in out
    assert "distinct so far: 2" in out
    assert "━" in out
    assert "prompt 1" not in out


@pytest.mark.parametrize("terminal", [True, False])
def test_decoding_options_of_the_model_are_said_once(shown, tmp_path, terminal):
    target = shown(terminal=terminal)
    identity = ModelIdentity(decoding={"num_beams": "3, left out", "top_k": "20, left out"})
    measure(tmp_path / "run", ScriptedEngine(identity=identity))
    sentence = "decoding options of the model: num_beams: 3, left out; top_k: 20, left out"
    assert target.getvalue().count(sentence) == 1


def test_without_such_options_nothing_is_said(shown, tmp_path):
    target = shown(terminal=False)
    measure(tmp_path / "run")
    assert "decoding" not in target.getvalue()


def test_bars_of_several_prompts_name_theirs(shown, tmp_path):
    target = shown(terminal=True)
    measure(tmp_path / "run", prompts=("Why?", "How?"))
    assert "prompt 1, stock, batch size 4" in target.getvalue()
    assert "prompt 2, batch-invariant, batch size 1" in target.getvalue()


def test_a_narrow_terminal_still_shows_how_far_it_is(shown, tmp_path):
    target = shown(terminal=True, width=40)
    measure(tmp_path / "run")
    out = target.getvalue()
    assert "━" not in out
    assert "all condi" in out
    assert "24/24" in out


def test_without_a_terminal_there_is_a_line_a_condition(shown, tmp_path):
    target = shown(terminal=False)
    measure(tmp_path / "run", kernels=("stock",))
    first, *rest = target.getvalue().splitlines()
    assert first.startswith("run directory: ")
    assert len(rest) == 2
    assert rest[0].startswith("p0/stock/b1: ")
    assert rest[1].endswith("completions, distinct so far: 2, 1,000 tokens/s")


def test_what_failed_says_why_in_its_line(shown, tmp_path):
    target = shown(terminal=False)
    error = OutOfMemory("Out of memory at batch size 1.")
    measure(tmp_path / "run", ScriptedEngine(fail_with={("p0/stock/b1", 0): error}))
    assert "of memory at batch size 1." in target.getvalue()
    assert "p0/stock/b4: 0 of" in target.getvalue()


def test_what_was_known_before_a_resume_is_where_the_bar_begins(shown, tmp_path):
    target = shown(terminal=True)
    record = ConditionRecord("p0/stock/b4", 0, "stock", 4, asked=20, completed=8)
    with ProgressListener() as listener:
        listener.run_started(tmp_path, [record])
        listener.condition_started(0, record)
    assert "8/20" in target.getvalue()


def test_an_interrupt_is_said_after_the_bars(shown, tmp_path):
    target = shown(terminal=True)
    measure(tmp_path / "run", ScriptedEngine(fail_with={("p0/stock/b4", 0): KeyboardInterrupt()}))
    assert target.getvalue().rstrip().endswith("interrupted: committed trials are kept.")


def test_tokens_of_the_trial_in_flight_are_counted(shown, tmp_path):
    target = shown(terminal=True)
    record = ConditionRecord("p0/stock/b4", 0, "stock", 4, asked=20)
    with ProgressListener() as listener:
        listener.run_started(tmp_path, [record])
        listener.condition_started(0, record)
        listener.trial_finished(0, record, 3)
        listener.tokens_generated(0, 12345)
    assert "distinct so far: 3, 12,345 tokens" in target.getvalue()


def test_an_error_while_loading_leaves_the_terminal_as_it_was(shown):
    target = shown(terminal=True)
    with pytest.raises(ZeroDivisionError), ProgressListener():
        raise ZeroDivisionError
    hidden, seen = target.getvalue().rfind("\x1b[?25l"), target.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < seen, "the cursor is still hidden"


def test_names_from_outside_cannot_steer_the_terminal(shown, tmp_path):
    target = shown(terminal=True)
    record = ConditionRecord("p0/\x1b[2J/b1", 0, "\x1b[2J[red]", 1, asked=1)
    with ProgressListener() as listener:
        listener.run_started(Path("a\x1b[2Jb"), [record])
        listener.condition_started(0, record)
    assert "\x1b[2J" not in target.getvalue()
    assert "\\x1b[2J[red], batch size 1" in target.getvalue()


def test_the_real_console_is_stderr():
    assert progress.stderr is console.stderr


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_wait_that_is_over_is_not_printed_later(shown, monkeypatch, goes_on):
    """The checks of a server ask again during the run, and most of these waits are short."""
    monkeypatch.setattr(progress, "LONG_WAIT_S", 0.2)
    target = shown(terminal=False)
    with ProgressListener() as listener:
        listener.run_started(Path("run"), [ConditionRecord("p0/stock/b1", 0, "stock", 1, 4)])
        listener.condition_started(0, ConditionRecord("p0/stock/b1", 0, "stock", 1, 4))
        listener.waiting_for("waiting for a short answer")
        if goes_on:
            listener.tokens_generated(0, 3)
        time.sleep(0.5)
    assert ("waiting for a short answer …" in target.getvalue()) is not goes_on
