"""Bytes of a run directory: JSON that survives hostile text, and seals that show any change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from detcheck.errors import RunDirectoryError

BLOCK_BYTES = 1 << 18
_SEAL_KEY = b',\n  "seal": "sha256:'
_SEAL_END = b'"\n}\n'


@dataclass(slots=True)
class Seal:
    """Length and running hash of a file up to the last committed trial."""

    size: int = 0
    hasher: Any = field(default_factory=hashlib.sha256)

    def extended(self, data: bytes) -> Seal:
        """The seal after `data` is appended."""
        hasher = self.hasher.copy()
        hasher.update(data)
        return Seal(self.size + len(data), hasher)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `run.json`."""
        return {"bytes": self.size, "sha256": self.hasher.hexdigest()}


def dump_line(line: Mapping[str, Any]) -> bytes:
    """One line of JSON, newline included."""
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # text with a lone surrogate, from an untrusted server
        return json.dumps(line).encode("ascii") + b"\n"


def parse(data: bytes) -> Any:
    """Inverse of `dump_line`; raises ValueError where `data` is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:  # a lone surrogate, or not JSON at all
        try:
            return json.loads(data)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def dump_sealed(document: Mapping[str, Any]) -> bytes:
    """A document as indented JSON whose last member is the hash of all bytes before it."""
    try:
        data = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    except orjson.JSONEncodeError:  # a prompt with a lone surrogate, or a seed beyond 64 bits
        data = json.dumps(document, indent=2).encode("ascii")
    body = data.removesuffix(b"\n}")
    return body + _SEAL_KEY + hashlib.sha256(body).hexdigest().encode("ascii") + _SEAL_END


def is_sealed(data: bytes) -> bool:
    """Whether `data` is what `dump_sealed` returned, bit for bit."""
    body, _, seal = data.rpartition(_SEAL_KEY)
    return seal == hashlib.sha256(body).hexdigest().encode("ascii") + _SEAL_END


def sealed_blocks(path: Path, seal: Mapping[str, Any]) -> Iterator[list[bytes]]:
    """Lines of a file up to its seal, some at a time, without their newlines.

    Raises RunDirectoryError at the end where the bytes are not those that were sealed.
    """
    size = seal["bytes"]
    if not isinstance(size, int) or size < 0:
        raise RunDirectoryError(f"{path} has no valid seal: detcheck did not write it.")
    hasher = hashlib.sha256()
    rest = b""
    for block in _blocks(path, size):
        hasher.update(block)
        *lines, rest = (rest + block).split(b"\n")
        yield lines
    if rest or hasher.hexdigest() != seal["sha256"]:
        raise RunDirectoryError(f"{path} was changed after it was written: run it again.")


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file; RunDirectoryError where it has fewer."""
    left = size
    try:
        with path.open("rb") as file:
            while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
                left -= len(block)
                yield block
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path} is missing: the run directory is incomplete.") from error
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror}).") from error
    if left > 0:
        raise RunDirectoryError(f"{path} is truncated: {left} bytes of committed trials are gone.")


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a crash, finds the old bytes or the new ones."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
