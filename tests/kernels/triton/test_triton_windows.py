"""Triton's attention with windows, sinks and soft caps, and over a cache that drops keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from under_test import DEVICE, DOT_DTYPES, attention, attention_layout, differentiable, random

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton.requests import Window, attend_padded

HEADS, KV_HEADS, DIM = 4, 2, 32
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0], device=DEVICE)
SCORES = {
    "plain": Scores(),
    "cap": Scores(0.2, softcap=3.0),
    "sinks": Scores(sinks=SINKS),
    "cap and sinks": Scores(softcap=5.0, sinks=SINKS),
}
PLAIN, MORE = SCORES["plain"], SCORES["cap and sinks"]
WINDOWS = (2, 17, 60)
"""Within a block, across blocks, and across splits."""


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_layout, "SPLIT", 64)
    attention._kept.clear()


@dataclass(frozen=True)
class Request:
    """Queries at the given positions, and the keys that a cache still holds."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    positions: list[int]


def whole(seed: int, length: int, dtype: torch.dtype = torch.float32) -> Request:
    shapes = (HEADS, KV_HEADS, KV_HEADS)
    parts = [random(seed + i, 1, h, length, DIM, dtype=dtype) for i, h in enumerate(shapes)]
    return Request(*parts, list(range(length)))


def part(request: Request, first: int, end: int, window: int | None = None) -> Request:
    """Queries [first, end), with the keys that any of them sees, as in a rolling cache."""
    start = 0 if window is None else max(0, first + 1 - window)
    keys, values = (x[:, :, start:end] for x in (request.key, request.value))
    return Request(request.query[:, :, first:end], keys, values, request.positions[first:end])


def packed(
    requests: Sequence[Request], scores: Scores, window: int | None, *, positions: bool = True,
    parallel: bool | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    """As `packed_attention` in continuous batching; each request's (q, heads, dim)."""
    query, key, value = (
        torch.cat([getattr(r, name) for r in requests], 2) for name in ("query", "key", "value")
    )
    q_lens = [len(r.positions) for r in requests]
    longest = max(r.key.shape[2] for r in requests)
    where = torch.tensor([at for r in requests for at in r.positions], device=DEVICE)
    layout = attention_layout.Layout(
        len(requests), bounds(q_lens), bounds([r.key.shape[2] for r in requests]),
        window=window if window is not None and window < longest else None,
        positions=where if positions else None,
    )  # fmt: skip
    out = attention.attention(query, key, value, layout, scores, parallel=parallel)
    return list(out[0].split(q_lens))


def bounds(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()


def visible(length: int, window: int | None) -> torch.Tensor:
    at = torch.arange(length, device=DEVICE)
    seen = at <= at[:, None]
    return seen if window is None else seen & (at > at[:, None] - window)


def reference(request: Request, scores: Scores, window: int | None) -> torch.Tensor:
    """(q, heads, dim) in float64, by stock ops."""
    states = (request.query.double(), request.key.double(), request.value.double())
    mask = visible(len(request.positions), window)
    written_out = Scores(scores.scaling, scores.softcap or 1e9, scores.sinks)  # in any case
    return differentiable._stock(*states, mask, written_out)[0].transpose(0, 1)


@pytest.mark.parametrize(
    ("scores", "window"),
    [*((scores, 17) for scores in SCORES.values()), *((PLAIN, w) for w in (2, 60)), (MORE, None)],
)
def test_it_is_right_and_does_not_depend_on_the_batch(scores: Scores, window: int | None) -> None:
    requests = [whole(0, 100), whole(10, 20)]
    together = packed(requests, scores, window)
    for request, out in zip(requests, together, strict=True):
        expected = reference(request, scores, window).float()
        torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)
        assert torch.equal(packed([request], scores, window)[0], out)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("scores", [PLAIN, MORE], ids=["", "cap and sinks"])
def test_a_rolling_cache_decodes_to_the_bits_of_a_prefill(
    scores: Scores, window: int, dtype: torch.dtype
) -> None:
    """Splits side by side too, and beside a prompt."""
    request = whole(0, 100, dtype)
    prefill = packed([request], scores, window)[0]
    for position in (0, 64, 99):
        decoded = part(request, position, position + 1, window)
        for parallel in (False, True):
            out = packed([decoded], scores, window, parallel=parallel)[0]
            assert torch.equal(out[0], prefill[position])
        beside = packed([whole(30, 20, dtype), decoded], scores, window)[1]
        assert torch.equal(beside[0], prefill[position])


@pytest.mark.parametrize("window", WINDOWS)
def test_a_chunk_of_a_prompt_has_the_bits_of_the_whole(window: int) -> None:
    request, scores = whole(0, 100), SCORES["cap and sinks"]
    prefill = packed([request], scores, window)[0]
    for first, end in ((0, 37), (37, 100)):
        chunk = part(request, first, end, window)
        assert torch.equal(packed([chunk], scores, window)[0], prefill[first:end])


def test_the_same_check_catches_keys_that_are_counted_from_the_window() -> None:
    """The result of a rolling cache if nobody gives the positions of its keys."""
    request, window = whole(0, 100), 60
    prefill = packed([request], Scores(), window)[0]
    decoded = part(request, 99, 100, window)
    counted = packed([decoded], Scores(), window, positions=False)[0]
    torch.testing.assert_close(counted[0], prefill[99])
    assert not torch.equal(counted[0], prefill[99])


def test_a_sink_and_a_cap_are_not_left_out() -> None:
    request = whole(0, 20)
    results = [packed([request], scores, None)[0] for scores in SCORES.values()]
    for at, one in enumerate(results):
        assert not any(torch.allclose(one, other) for other in results[at + 1 :])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("scores", [PLAIN, MORE], ids=["", "cap and sinks"])
def test_a_padded_batch_has_the_bits_of_its_requests(scores: Scores, window: int) -> None:
    """A prefill by its mask, then a decoding step over a cache that rolls: as `generate` does."""
    lengths, longest = (100, 31), 100
    requests = [whole(10 * at, n) for at, n in enumerate(lengths)]
    alone = [packed([request], scores, window)[0] for request in requests]
    states = [
        torch.cat([padded_to(getattr(r, name), longest) for r in requests])
        for name in ("query", "key", "value")
    ]
    starts = torch.tensor([longest - n for n in lengths], device=DEVICE)
    at = torch.arange(longest, device=DEVICE)
    mask = visible(longest, window)[None] & (at >= starts[:, None, None])
    positions = (at - starts[:, None]).clamp(min=0)
    out = attend_padded(*states, mask[:, None], scores, Window(window, positions))
    for row, (request, expected) in enumerate(zip(requests, alone, strict=True)):
        assert torch.equal(out[row, longest - len(request.positions) :], expected)
    kept = max(0, longest - window)
    query, keys, values = states[0][:, :, -1:], *(x[:, :, kept:] for x in states[1:])
    last = Window(window, positions[:, -1:])
    own = mask[:, None, -1:, kept:]
    decoded = attend_padded(query, keys, values, own, scores, last)
    for row, expected in enumerate(alone):
        assert torch.equal(decoded[row, 0], expected[-1])


def padded_to(x: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 0, length - x.shape[2], 0), value=3.0)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_request_without_a_mask_has_the_bits_of_a_packed_one(window: int) -> None:
    request, scores = whole(0, 100), Scores()
    prefill = packed([request], scores, window)[0]
    states = request.query, request.key, request.value
    where = torch.arange(100, device=DEVICE)[None]
    assert torch.equal(attend_padded(*states, None, scores, Window(window, where))[0], prefill)
    one = states[0][:, :, -1:], *states[1:]
    last = Window(window, where[:, -1:])
    assert torch.equal(attend_padded(*one, None, scores, last)[0, 0], prefill[-1])


def test_sequences_in_a_row_with_a_window_have_their_own_bits() -> None:
    lengths, window = (40, 41), 17
    requests = [whole(10 * at, n) for at, n in enumerate(lengths)]
    states = [
        torch.cat([getattr(r, name) for r in requests], 2) for name in ("query", "key", "value")
    ]
    mask = torch.block_diag(*(visible(n, window) for n in lengths)).bool()[None, None]
    out = attend_padded(*states, mask.to(DEVICE), Scores(), Window(window))
    for request, mine in zip(requests, out[0].split(lengths), strict=True):
        assert torch.equal(mine, packed([request], Scores(), window)[0])


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_gradients_are_those_of_the_stock_formula(scores: Scores) -> None:
    request, window = whole(0, 40), 17
    sinks = None if scores.sinks is None else scores.sinks.clone().requires_grad_()
    trained = Scores(scores.scaling, scores.softcap, sinks)
    states = [x.clone().requires_grad_() for x in (request.query, request.key, request.value)]
    attend_padded(*states, None, trained, Window(window)).square().sum().backward()
    doubles = [x.detach().double().requires_grad_() for x in states]
    own = None if sinks is None else sinks.detach().double().requires_grad_()
    exact = reference(
        Request(*doubles, request.positions), Scores(scores.scaling, scores.softcap, own), window
    )
    exact.square().sum().backward()
    pairs = list(zip(states, doubles, strict=True))
    pairs += [] if sinks is None or own is None else [(sinks, own)]
    for x, expected in pairs:
        torch.testing.assert_close(x.grad, expected.grad.float(), rtol=1e-3, atol=1e-4)
