"""Compressed bodies: gzip and deflate are undone as they arrive, others are named."""

from __future__ import annotations

import gzip
import zlib

import pytest

from detcheck.engines.openai.compression import MOST_AT_ONCE, Decompressor
from detcheck.engines.openai.failures import MALFORMED, Compressed, Failure

EVENTS = b'data: {"choices": [{"text": "caf\xc3\xa9"}]}\n\n' * 40


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-zlib.MAX_WBITS)


def read(data: bytes, encoding: str = "", size: int = 7) -> bytes:
    plain = Decompressor(encoding)
    fed = [
        piece
        for start in range(0, len(data), size)
        for piece in plain.feed(data[start : start + size])
    ]
    return b"".join((*fed, plain.close()))


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate", "br", " GZIP "])
@pytest.mark.parametrize("data", [EVENTS, b"", b"{}", b"[1]", "é".encode() * 9])
def test_a_plain_body_is_left_as_it_is_whatever_its_label(data: bytes, encoding: str) -> None:
    assert read(data, encoding) == data


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (gzip.compress(EVENTS), "gzip"),
        (gzip.compress(EVENTS), ""),
        (gzip.compress(EVENTS[:100]) + gzip.compress(EVENTS[100:]), "gzip"),
        (gzip.compress(EVENTS) + bytes(8), "gzip"),
        (zlib.compress(EVENTS), "deflate"),
        (zlib.compress(EVENTS, 9), ""),
        (raw_deflate(EVENTS), "deflate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gzip_and_deflate_are_undone(data: bytes, encoding: str, size: int) -> None:
    assert read(data, encoding, size) == EVENTS


def test_a_short_body_is_undone_too() -> None:
    assert read(raw_deflate(b"{}"), "deflate") == b"{}"


def test_what_was_flushed_is_given_at_once() -> None:
    """An event must not wait for the next one: its time of arrival is evidence."""
    squeeze, plain = zlib.compressobj(wbits=16 + zlib.MAX_WBITS), Decompressor("gzip")
    for number in range(3):
        event = b"data: %d\n\n" % number
        sent = squeeze.compress(event) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        assert b"".join(plain.feed(sent)) == event


def test_a_small_body_is_never_inflated_at_once() -> None:
    pieces = Decompressor().feed(gzip.compress(bytes(1 << 24)))
    assert len(next(pieces)) <= MOST_AT_ONCE


@pytest.mark.parametrize(
    ("data", "encoding", "named"),
    [
        (b"\x28\xb5\x2f\xfd....", "", "zstd"),
        (b"\x1b\x00\x00\x8b\x02", "br", "br"),
        (b"[\xff\x80\x90", "br", "br"),
    ],
)
def test_another_compression_is_named(data: bytes, encoding: str, named: str) -> None:
    with pytest.raises(Compressed) as caught:
        read(data, encoding)
    assert caught.value.phrase == f"the reply is compressed ({named}), which was not asked for"


def test_a_damaged_body_is_a_failure_and_a_cut_one_is_only_shorter() -> None:
    whole = gzip.compress(EVENTS)
    assert EVENTS.startswith(read(whole[:-20]))
    with pytest.raises(Failure) as caught:
        read(whole[:20] + bytes(20))
    assert (caught.value.kind, caught.value.phrase) == (
        MALFORMED,
        "the compressed reply is damaged",
    )
