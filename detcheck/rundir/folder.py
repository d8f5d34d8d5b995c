"""The folder of a run: it must be free for a new run, and has one writer at a time."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from detcheck.errors import RunDirectoryError, StorageError

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]


def check_vacant(path: Path) -> None:
    """Raise RunDirectoryError if a new run cannot be written to `path`; changes nothing."""
    try:
        _check_empty(path)
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    if not existing.is_dir():
        raise _unwritable(path, f"{existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unwritable(path, "permission denied")


def prepare(path: Path) -> None:
    """Make the folder of a new run; raises RunDirectoryError if it is not empty."""
    try:
        _check_empty(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def lock(path: Path, file: FileIO) -> None:
    """Lock `path` against other writers until `file` is closed or this process ends.

    Raises RunDirectoryError if another process has the lock. Readers need no lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use(path) from error
    except OSError:
        pass  # a file system without locks


def in_use(path: Path) -> RunDirectoryError:
    """The error: another process writes to `path`."""
    return RunDirectoryError(
        f"Another process is writing to {path}: wait until it has ended, then go on with "
        f'`resume="{path}"`.'
    )


def not_empty(path: Path) -> RunDirectoryError:
    """The error: `path` already holds files."""
    return RunDirectoryError(
        f'{path} is not empty: choose another `out`, or go on with `resume="{path}"`.'
    )


def storage_error(path: Path, error: OSError) -> StorageError:
    """The error: the system refused to write to the run directory `path`."""
    reason = (error.strerror or str(error)).lower()
    return StorageError(
        f"Writing to {path} failed ({reason}); the trials before are kept: make room, then go on "
        f'with `resume="{path}"`.'
    )


def _check_empty(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise not_empty(path)


def _unwritable(path: Path, reason: str) -> RunDirectoryError:
    return RunDirectoryError(f"{path} cannot be written ({reason}): choose another `out`.")
