"""Bytes of a run directory: JSON that survives hostile text, and seals that show any change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from detcheck.errors import RunDirectoryError
from detcheck.options import plain_error

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

    def record(self) -> SealRecord:
        """The seal as `run.json` keeps it."""
        return SealRecord(self.size, self.hasher.hexdigest())


class SealRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Length and SHA-256 of a file up to the last committed trial, as kept in `run.json`."""

    bytes: int
    """Length up to the last sealed trial."""
    sha256: str
    """Hash of these bytes, in hex."""


def dump_line(line: Any) -> bytes:
    """A record as one line of JSON, newline included. Numbers that are not finite become null."""
    return dump(line) + b"\n"


def dump(record: Any) -> bytes:
    """A record as JSON, lone surrogates included (untrusted text may hold them)."""
    try:
        return msgspec.json.encode(record)
    except (UnicodeEncodeError, OverflowError):  # a lone surrogate, or a number beyond 64 bits
        return json.dumps(msgspec.to_builtins(record)).encode("ascii")


@cache
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of one type of record; built once."""
    return msgspec.json.Decoder(kind)


def parse(data: bytes, kind: Any) -> Any:
    """Inverse of `dump`: a record of type `kind`.

    Raises ValueError, with the path of the field, if `data` is not JSON or not such a record.
    """
    try:
        return decoder(kind).decode(data)
    except msgspec.ValidationError as error:
        raise ValueError(plain_error(str(error))) from error
    except (msgspec.DecodeError, RecursionError):  # a lone surrogate, or not JSON at all
        return _parse_leniently(data, kind)


def _parse_leniently(data: bytes, kind: Any) -> Any:
    """As `parse`, with the standard library's parser, which takes lone surrogates."""
    try:
        return msgspec.convert(json.loads(data), kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except msgspec.ValidationError as error:
        raise ValueError(plain_error(str(error))) from error


def dump_sealed(document: Any) -> bytes:
    """A document as indented JSON whose last member is the hash of all bytes before it."""
    data = dump(document)
    try:
        data = msgspec.json.format(data, indent=2)
    except msgspec.DecodeError:  # a lone surrogate
        data = json.dumps(json.loads(data), indent=2).encode("ascii")
    body = data.removesuffix(b"\n}")
    return body + _SEAL_KEY + hashlib.sha256(body).hexdigest().encode("ascii") + _SEAL_END


def is_sealed(data: bytes) -> bool:
    """True if `data` is a result of `dump_sealed`, bit for bit."""
    body, _, seal = data.rpartition(_SEAL_KEY)
    return seal == hashlib.sha256(body).hexdigest().encode("ascii") + _SEAL_END


def sealed_blocks(path: Path, seal: SealRecord) -> Iterator[list[bytes]]:
    """Lines of a file up to its seal, some at a time, without their newlines.

    Raises RunDirectoryError at the end if the bytes are not those that were sealed.
    """
    size = seal.bytes
    if size < 0:
        raise RunDirectoryError(f"{path} has no valid seal: detcheck did not write it.")
    hasher = hashlib.sha256()
    rest = b""
    for block in _blocks(path, size):
        hasher.update(block)
        *lines, rest = (rest + block).split(b"\n")
        yield lines
    if rest or hasher.hexdigest() != seal.sha256:
        raise RunDirectoryError(f"{path} was changed after it was written: run it again.")


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file; RunDirectoryError if it has fewer."""
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
