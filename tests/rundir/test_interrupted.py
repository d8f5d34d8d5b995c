"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import settled
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import append_trials, create, record
from sweeps import few

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import RunDirectoryError, StorageError
from detcheck.rundir import (
    COMPLETIONS_FILE,
    VARIANTS_FILE,
    Run,
    RunWriter,
    load,
    writer,
)

from .runs import EXPERIMENT, TRIALS, contents, engine, snapshot


def go_on(path: Path) -> Run:
    """Resume, finish, load."""
    resumed, _ = RunWriter.resume(path)
    assert append_trials(resumed, EXPERIMENT, engine())
    resumed.close()
    return load(path)


@few("trials", range(TRIALS + 1), every=5)
def test_resuming_gives_the_bytes_of_an_undisturbed_run(
    undisturbed: Path, tmp_path: Path, trials: int
) -> None:
    path = tmp_path / "run"
    record(path, engine(), EXPERIMENT, limit=trials)
    go_on(path)
    assert contents(path) == contents(undisturbed)


def test_resuming_cuts_what_was_not_committed(base: Path, copy: Path, undisturbed: Path) -> None:
    resumed, run = RunWriter.resume(copy)
    assert snapshot(run) == snapshot(load(base))
    resumed.close()
    for name in (COMPLETIONS_FILE, VARIANTS_FILE):
        assert (copy / name).read_bytes() == (undisturbed / name).read_bytes()
    assert [resumed.distinct(prompt) for prompt in (0, 1)] == [len(run.variants), 0]


class Killed(BaseException):
    """Stands for SIGKILL: nothing runs after it."""


@pytest.fixture(params=["truncate", "half", "seal"])
def die_in_commit(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Returns a function after whose call the next commit dies: at its start, middle or end."""

    def die() -> None:
        if request.param == "half":
            append = RunWriter._append

            def half(self: RunWriter, name: str, data: bytes) -> None:
                append(self, name, data[: len(data) // 2])
                raise Killed

            monkeypatch.setattr(RunWriter, "_append", half)
        else:
            name = {"truncate": "_append", "seal": "_replace_run_file"}[request.param]
            monkeypatch.setattr(RunWriter, name, killed)

    def killed(*_: object) -> None:
        raise Killed

    yield die
    monkeypatch.undo()


@few("trials", [0, 1, 7, TRIALS - 1], every=3)
def test_a_kill_within_a_commit_loses_only_that_trial(
    undisturbed: Path,
    tmp_path: Path,
    die_in_commit: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    trials: int,
) -> None:
    path = tmp_path / "run"
    dying = create(path, EXPERIMENT)
    append_trials(dying, EXPERIMENT, engine(), limit=trials)
    die_in_commit()
    with pytest.raises(Killed):
        append_trials(dying, EXPERIMENT, engine())
    dying.close()
    monkeypatch.undo()
    assert sum(record.trials for record in load(path).conditions) == trials
    go_on(path)
    assert contents(path) == contents(undisturbed)


@pytest.mark.parametrize("fails", ["write", "run file"])
def test_a_full_disk_keeps_the_trials_before_and_lets_others_follow(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "run"
    full = create(path, EXPERIMENT)
    append_trials(full, EXPERIMENT, engine(), limit=5)
    before = snapshot(load(path))

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        target = (os, "fsync") if fails == "write" else (writer, "replace_file")
        patch.setattr(*target, no_space)
        with pytest.raises(StorageError, match="no space left on device"):
            append_trials(full, EXPERIMENT, engine(), limit=1)
        with pytest.raises(StorageError, match="no space left on device"):
            full.save()
    assert snapshot(load(path)) == before
    full.save()
    assert snapshot(load(path)) == before
    append_trials(full, EXPERIMENT, engine())
    full.close()
    assert contents(path) == contents(undisturbed)


def test_status_and_error_of_a_condition_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    failing = create(path, EXPERIMENT)
    failing.set_status(1, "failed", "Out of memory at batch size 4.")
    failing.finish([{"prompt": "x"}], None)
    failing.close()
    run = load(path)
    assert (run.conditions[1].status, run.conditions[1].error) == (
        "failed",
        "Out of memory at batch size 4.",
    )
    assert (run.finished, run.complete, run.summary) == (None, False, ({"prompt": "x"},))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match="not empty"):
        create(tmp_path, EXPERIMENT)
    with pytest.raises(RunDirectoryError, match="not empty"):
        create(tmp_path / "mine.txt", EXPERIMENT)
    assert contents(tmp_path) == {"mine.txt": b"precious"}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        create(tmp_path / "file" / "run", EXPERIMENT)


def test_resuming_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        RunWriter.resume(tmp_path / "nowhere")


@pytest.mark.sweep
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 14), st.floats(0, 1)), max_size=3),
    st.integers(0, TRIALS),
)
def test_any_run_is_the_same_after_an_interruption(
    plants: list[tuple[int, int, float]], limit: int
) -> None:
    planted = [Planted(position, token, rate=rate) for position, token, rate in plants]
    with tempfile.TemporaryDirectory() as folder:
        whole = record(Path(folder) / "whole", ScriptedEngine(planted, noise=0.1), EXPERIMENT)
        path = Path(folder) / "cut"
        record(path, ScriptedEngine(planted, noise=0.1), EXPERIMENT, limit=limit)
        resumed, _ = RunWriter.resume(path)
        append_trials(resumed, EXPERIMENT, ScriptedEngine(planted, noise=0.1))
        resumed.close()
        assert snapshot(load(path)) == snapshot(whole)


def test_experiments_of_any_grid_load(tmp_path: Path) -> None:
    experiment = settled(completions=1, batch_sizes=(1,), max_new_tokens=1)
    assert len(record(tmp_path / "run", None, experiment).completions) == 2
