"""Files of a report, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from detcheck.errors import StorageError


def write_files(folder: Path, contents: Mapping[str, str], what: str) -> list[Path]:
    """Write texts by their names relative to `folder`; returns the paths, in order.

    Each file is written beside its place and then moved there, so that a full disk leaves the
    file of before, or none. Raises StorageError if `folder` cannot be written; `what` names the
    files in its message.
    """
    try:
        for name, text in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{what} cannot be written to {folder} ({reason}): choose another `out`."
        ) from error
    return [folder / name for name in contents]


def _replace(path: Path, text: str) -> None:
    # Lone surrogates are shown by name long before this; never fail on one that is not.
    data = text.encode("utf-8", errors="backslashreplace")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
