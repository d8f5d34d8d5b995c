"""Replies that a server or its proxy compressed, though they were asked for as they are.

Like all else of a body, compression is told by the first bytes: the header `Content-Encoding` is
believed only for encodings that cannot be told by them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from detcheck.engines.openai.failures import MALFORMED, Compressed, Failure
from detcheck.text import one_line

MOST_AT_ONCE = 1 << 16
"""Bytes that are decompressed before the reader's limits are looked at."""
_GZIP = b"\x1f\x8b"
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_ZSTD = b"\x28\xb5\x2f\xfd"
_ENOUGH = 4
"""Bytes that tell gzip, zlib and zstd."""
_ENOUGH_TEXT = 32
"""Bytes that tell text from other compressions, if the header names one."""
_PLAIN = ("", "identity", "gzip", "x-gzip")
"""Encodings whose bodies are plain unless their first bytes say otherwise."""
_RAW_DEFLATE, _DEFLATE, _WITH_GZIP = -zlib.MAX_WBITS, zlib.MAX_WBITS, 16 + zlib.MAX_WBITS


class Decompressor:
    """Takes the bytes of a body as they arrive, and gives them back without their compression.

    `encoding` is the value of the header `Content-Encoding`, empty if there is none. gzip and
    deflate are decompressed. `feed` raises Failure if these are damaged, and Compressed if the
    body has another compression.
    """

    def __init__(self, encoding: str = ""):
        self._encoding = encoding.strip().lower()
        self._start = b""
        self._has_begun = False
        self._window = 0
        self._inflater: Any = None
        """The decompressor of the body; None if the body is plain."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Plain bytes of the next `data`, in pieces of `MOST_AT_ONCE` bytes at most if inflated."""
        if not self._has_begun:
            data = self._start + data
            enough = _ENOUGH if self._encoding in _PLAIN else _ENOUGH_TEXT
            if len(data) < enough:
                self._start = data
                return
            self._begin(data)
        yield from self._inflated(data) if self._inflater is not None else (data,)

    def close(self) -> bytes:
        """The plain bytes of a body so short that they were held back until now."""
        if self._has_begun or not self._start:
            return b""
        self._begin(self._start)
        return b"".join(self._inflated(self._start)) if self._inflater is not None else self._start

    def _begin(self, data: bytes) -> None:
        self._has_begun = True
        if data.startswith(_GZIP):
            self._window = _WITH_GZIP
        elif data.startswith(_ZLIB):
            self._window = _DEFLATE
        elif data.startswith(_ZSTD):
            raise Compressed("zstd")
        elif self._encoding == "deflate" and not _is_text(data):
            self._window = _RAW_DEFLATE
        elif self._encoding not in (*_PLAIN, "deflate") and not _is_text(data):
            raise Compressed(one_line(self._encoding)[:40])
        if self._window:
            self._inflater = zlib.decompressobj(self._window)

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                if self._inflater.eof:
                    if self._window != _WITH_GZIP or not data.startswith(_GZIP[:1]):
                        return  # padding
                    self._inflater = zlib.decompressobj(self._window)
                plain = self._inflater.decompress(data, MOST_AT_ONCE)
                data = self._inflater.unconsumed_tail or self._inflater.unused_data
                if plain:
                    yield plain
        except zlib.error:
            raise Failure(MALFORMED, "the compressed reply is damaged") from None


def _is_text(data: bytes) -> bool:
    """True if bytes can be the beginning of JSON, of events or of a page."""
    return not any(byte < 9 or 13 < byte < 32 or byte == 127 for byte in data) and all(
        character != "\ufffd" for character in data.decode("utf-8", "replace")[:-1]
    )
