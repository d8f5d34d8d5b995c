from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.engines.openai.sse import EventParser

STREAM = b': hello\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata: one\ndata: two\n\n\ndata:[DONE]\n\n'
EVENTS = [b'{"a": 1}', b"one\ntwo", b"[DONE]"]


def parse(pieces: list[bytes], longest_line: int = 100, longest: int = 10_000) -> list[bytes]:
    parser = EventParser(longest_line, longest)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert parse(pieces) == EVENTS


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"\xef\xbb\xbfdata: first\n\ndata: second\n\n", [b"first", b"second"]),
        (b"data: one\r\rdata: two\ndata: three\r\n\r\n", [b"one", b"two\nthree"]),
        (
            b'data: {"a": 1}\ndata: {"b": {}}\ndata: [DONE]\n',
            [b'{"a": 1}', b'{"b": {}}', b"[DONE]"],
        ),
        (b'data: {\ndata: "a": {}\ndata: }\n\n', [b'{\n"a": {}\n}']),
        (b"data: a\n\ndata:\n\ndata: \n\ndata: [DONE] \n\n", [b"a", b"[DONE]"]),
    ],
    ids=[
        "byte order mark",
        "CR",
        "no blank lines",
        "an object on several lines",
        "empty events and a trailing space",
    ],
)
def test_marks_and_empty_events_are_removed(stream, events) -> None:
    assert parse([stream]) == events
    assert parse([stream[i : i + 1] for i in range(len(stream))]) == events


def test_an_event_that_the_end_of_the_stream_completes_counts() -> None:
    assert parse([b"data: last"]) == [b"last"]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [([b"data: " + b"x" * 200], "no end"), ([b"data: x\n\n"] * 2000, "longer than")],
)
def test_line_or_stream_without_end_is_refused(pieces: list[bytes], said: str) -> None:
    with pytest.raises(Failure, match=said) as caught:
        parse(pieces)
    assert caught.value.kind == MALFORMED
