"""A file of a report is written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from detcheck.errors import StorageError
from detcheck.report.files import write_files


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"report.html": "before"}, "The report")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        write_files(tmp_path, {"report.html": "after", "new.html": "new"}, "The report")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "before"


def test_texts_are_written_as_they_are(tmp_path: Path) -> None:
    written = write_files(tmp_path, {"a/b.txt": "one\r\ntwo\ud800", "c.txt": ""}, "The report")
    assert written == [tmp_path / "a/b.txt", tmp_path / "c.txt"]
    assert written[0].read_bytes() == b"one\r\ntwo\\ud800"


def test_other_users_may_read_a_report(tmp_path: Path) -> None:
    (written,) = write_files(tmp_path, {"report.html": "x"}, "The report")
    (tmp_path / "plain").write_text("x")
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="The report cannot be written"):
        write_files(tmp_path / "file" / "below", {"report.html": "x"}, "The report")
