"""Overlapping streams: those of a batching server, and those that are no evidence of a batch."""

from __future__ import annotations

import asyncio

import pytest

from detcheck.engines.openai.evidence import MetricsWatch, Stream, agreed, overlapping
from detcheck.evidence import SERVER_COUNTERS, STREAMED_TOKENS, LoadEvidence


def stream(*times: int) -> Stream:
    """A stream whose tokens arrived in these turns of the event loop, a second each."""
    made = Stream()
    for tick in times:
        made.saw_tokens(tick, float(tick))
    return made


def test_interleaved_streams_are_a_batch() -> None:
    found = overlapping([stream(*range(start, 100)) for start in range(8)])
    assert found is not None
    assert (found.source, found.rows_max) == (STREAMED_TOKENS, 8)


@pytest.mark.parametrize(
    "streams",
    [
        [stream(*range(10 * k, 10 * k + 10)) for k in range(8)],
        # The last token of one reply arrives in the same turn as the first of the next.
        [stream(*range(10 * k, 10 * k + 11)) for k in range(8)],
        # Every reply gets its first token at once; then one is served after the other.
        [stream(0, *range(10 * k + 1, 10 * k + 11)) for k in range(8)],
    ],
)
def test_requests_served_one_by_one_are_no_batch(streams: list[Stream]) -> None:
    found = overlapping(streams)
    assert found is not None
    assert found.rows_max == 1


def test_a_late_packet_makes_no_batch() -> None:
    streams = [stream(*range(0, 100), 102), stream(*range(100, 200)), stream(*range(200, 300))]
    found = overlapping(streams)
    assert found is not None
    assert found.rows_max == 1


def test_replies_in_one_piece_are_no_evidence() -> None:
    assert overlapping([stream(5, 5, 5) for _ in range(8)]) is None
    assert overlapping([stream(5) for _ in range(8)]) is None
    assert overlapping([]) is None


def test_a_ctrl_c_while_the_poll_ends_is_not_lost() -> None:
    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)

    async def interrupted() -> None:
        watch = MetricsWatch(None)
        watch._poll = asyncio.create_task(slow_to_end())
        ending = asyncio.create_task(watch.abandon())
        await asyncio.sleep(0.01)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending

    asyncio.run(interrupted())


@pytest.mark.parametrize(
    ("rows_max", "rows_mean", "source"),
    [
        (31, 31.0, SERVER_COUNTERS),  # other clients' requests
        (16, None, STREAMED_TOKENS),  # a gauge that has not moved since the trial before
        (16, 1.0, STREAMED_TOKENS),
        (1, 1.0, SERVER_COUNTERS),
    ],
)
def test_other_clients_beside_one_request_are_seen_by_iterations_only(
    rows_max, rows_mean, source
) -> None:
    counted = LoadEvidence(SERVER_COUNTERS, rows_max, rows_mean)
    found = agreed(counted, [stream(*range(10))])
    assert found is not None
    assert found.source == source


def test_two_halves_one_after_the_other_count_as_half() -> None:
    early = [stream(*range(0, 50)) for _ in range(4)]
    late = [stream(*range(50, 100)) for _ in range(4)]
    found = overlapping([*early, *late])
    assert found is not None
    assert found.rows_max == 4
