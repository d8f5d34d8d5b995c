"""One writer at a time, and folders that are not free for a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from recorded import append_trials, create, record

from detcheck.errors import RunDirectoryError
from detcheck.rundir import RunWriter, folder, load, writer

from .runs import EXPERIMENT, contents, engine


def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(folder, "fcntl", None)


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = create(path, EXPERIMENT)
    append_trials(first, EXPERIMENT, engine(), limit=3)
    before = contents(path)
    with pytest.raises(RunDirectoryError, match=r"Another process is writing to .*run: wait"):
        RunWriter.resume(path)
    assert contents(path) == before
    append_trials(first, EXPERIMENT, engine(), limit=1)
    first.close()
    second, run = RunWriter.resume(path)
    assert sum(condition.trials for condition in run.conditions) == 4
    with pytest.raises(RunDirectoryError, match="Another process"):
        RunWriter.resume(path)
    second.close()


def test_without_the_lock_the_second_would_have_been_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlocked(monkeypatch)
    first = create(tmp_path / "run", EXPERIMENT)
    second, run = RunWriter.resume(tmp_path / "run")
    assert run.path == tmp_path / "run", "let in, while the first still writes"
    first.close()
    second.close()


def test_reading_needs_no_lock(tmp_path: Path) -> None:
    writing = create(tmp_path / "run", EXPERIMENT)
    append_trials(writing, EXPERIMENT, engine(), limit=3)
    assert sum(condition.trials for condition in load(tmp_path / "run").conditions) == 3
    writing.close()


def test_a_file_system_without_locks_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder, "fcntl", NoLocks)
    assert record(tmp_path / "run", engine(), EXPERIMENT).complete


def test_what_another_has_written_between_verifying_and_locking_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    record(path, engine(), EXPERIMENT, limit=3)

    def quick(path: Path, file: Any) -> None:
        monkeypatch.undo()
        other, _ = RunWriter.resume(path)
        append_trials(other, EXPERIMENT, engine(), limit=1)
        other.close()

    monkeypatch.setattr(folder, "lock", quick)
    with pytest.raises(RunDirectoryError, match="Another process is writing"):
        RunWriter.resume(path)
    assert sum(condition.trials for condition in load(path).conditions) == 4


def test_of_two_that_start_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(tmp_path / "run", EXPERIMENT)
    monkeypatch.setattr(writer.folder, "prepare", lambda path: None)
    with pytest.raises(RunDirectoryError, match="not empty"):
        create(tmp_path / "run", EXPERIMENT)
    first.close()
    assert load(tmp_path / "run").experiment == EXPERIMENT


def test_a_vacant_folder_is_left_as_it_is(tmp_path: Path) -> None:
    folder.check_vacant(tmp_path)
    folder.check_vacant(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path, words in (
        (tmp_path, "is not empty: choose another `out`"),
        (tmp_path / "file", "is not empty"),
        (tmp_path / "file/run", "cannot be written"),
        (tmp_path / ("x" * 300) / "run", "cannot be written"),
    ):
        with pytest.raises(RunDirectoryError, match=words):
            folder.check_vacant(path)


def test_a_folder_without_permission_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunDirectoryError, match=r"cannot be written \(permission denied\)"):
        folder.check_vacant(tmp_path / "run")
