"""Ctrl-C: what was measured is kept, and the rest comes out the same."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sweeps import few

from detcheck import Run, execution, load, resume, run
from detcheck.errors import RunDirectoryError
from detcheck.rundir import RunWriter

from .measured import (
    EXPERIMENT,
    FIRST,
    LAST,
    MIDDLE,
    Engine,
    Recorder,
    assert_same,
    by_id,
    lines,
    whole_plan,
)


@few("at", [FIRST, *MIDDLE, LAST], every=2)
def test_an_interrupted_run_is_loadable_and_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: Run, at: tuple[str, int]
) -> None:
    engine, heard = Engine(fail_with={at: KeyboardInterrupt()}), Recorder()
    stopped = run(EXPERIMENT, out=tmp_path / "run", engine=engine, listener=heard)
    assert (stopped.complete, stopped.finished, engine.closed) == (False, None, True)
    assert heard.calls[-1] == ("interrupted",)
    assert sum(record.trials for record in stopped.conditions) == len(engine.asked) - 1
    assert by_id(stopped)[at[0]].status == "running"
    assert load(stopped.path).summary == stopped.summary
    assert sum(row["completions"] for row in stopped.summary) == len(stopped.completions)

    rest = Engine()
    resumed = resume(tmp_path / "run", engine=rest)
    assert engine.asked[:-1] + rest.asked == whole_plan()
    assert_same(resumed, whole)
    assert lines(resumed) == lines(whole)
    assert resumed.run_id == stopped.run_id


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path, whole: Run) -> None:
    run(EXPERIMENT, out=tmp_path / "run", engine=Engine(fail_with={FIRST: KeyboardInterrupt()}))
    for at in MIDDLE:
        engine = Engine(fail_with={at: KeyboardInterrupt()})
        assert not resume(tmp_path / "run", engine=engine).complete
    resumed = resume(tmp_path / "run", engine=Engine())
    assert_same(resumed, whole)
    assert lines(resumed) == lines(whole)


def test_resuming_a_finished_run_asks_nothing(tmp_path: Path, whole: Run) -> None:
    run(EXPERIMENT, out=tmp_path / "run", engine=Engine())
    engine = Engine()
    assert_same(resume(tmp_path / "run", engine=engine), whole)
    assert engine.asked == []


def test_a_run_does_not_become_younger_by_being_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only later measurements count: a gate may hold the age of a run."""
    monkeypatch.setattr(execution, "utc_now", lambda: "2026-01-01T00:00:00+00:00")
    stopped = Engine(fail_with={LAST: KeyboardInterrupt()})
    assert run(EXPERIMENT, out=tmp_path / "run", engine=stopped).finished is None
    monkeypatch.setattr(execution, "utc_now", lambda: "2026-02-02T00:00:00+00:00")
    assert resume(tmp_path / "run", engine=Engine()).finished == "2026-02-02T00:00:00+00:00"
    monkeypatch.setattr(execution, "utc_now", lambda: "2026-03-03T00:00:00+00:00")
    assert resume(tmp_path / "run", engine=Engine()).finished == "2026-02-02T00:00:00+00:00"
    assert load(tmp_path / "run").finished == "2026-02-02T00:00:00+00:00"


@pytest.fixture
def ctrl_c_in_a_commit(interrupt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the sixth commit, between the files and what the writer knows of them."""
    replace, commits = RunWriter._commit, iter(range(1000))

    def commit(self: RunWriter, trial: Any) -> None:
        if next(commits) == 5:
            monkeypatch.setattr(self.__class__, "_replace_run_file", replaced_and_interrupted)
        replace(self, trial)

    replace_run_file = RunWriter._replace_run_file

    def replaced_and_interrupted(self: RunWriter, *args: Any) -> None:
        monkeypatch.setattr(RunWriter, "_replace_run_file", replace_run_file)
        replace_run_file(self, *args)
        self._seals = args[1]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunWriter, "_commit", commit)


def test_ctrl_c_waits_for_the_commit(tmp_path: Path, whole: Run, ctrl_c_in_a_commit: None) -> None:
    stopped = run(EXPERIMENT, out=tmp_path / "run", engine=Engine())
    assert sum(record.trials for record in stopped.conditions) == 6
    resumed = resume(tmp_path / "run", engine=Engine())
    assert lines(resumed) == lines(whole)


def test_ctrl_c_that_did_not_wait_would_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c_in_a_commit: None
) -> None:
    monkeypatch.setattr(execution, "_uninterrupted", nullcontext)
    with pytest.raises(RunDirectoryError, match="edited"):
        run(EXPERIMENT, out=tmp_path / "run", engine=Engine())
