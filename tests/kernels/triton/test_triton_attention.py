"""Triton's attention: right, and each query the same bits whatever the call, chunk or phase."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F
from under_test import DEVICE, DOT_DTYPES, attention, differentiable, random

from detcheck.errors import UsageError

Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""query (1, heads, q, dim), key and value (1, kv_heads, k, dim)"""


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several splits from few keys."""
    monkeypatch.setattr(attention, "SPLIT", 128)


def request(
    seed: int, q_len: int, k_len: int, *, heads: int = 6, kv_heads: int = 2, dim: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Request:  # fmt: skip
    shapes = [(heads, q_len), (kv_heads, k_len), (kv_heads, k_len)]
    parts = [random(seed + i, 1, h, n, dim, dtype=dtype) for i, (h, n) in enumerate(shapes)]
    return parts[0], parts[1], parts[2]


def packed(requests: Sequence[Request], parallel: bool | None = None) -> list[torch.Tensor]:
    """Attend all requests in one packed call; each one's (q, heads, dim)."""
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*requests, strict=True))
    q_lens = [r[0].shape[2] for r in requests]
    layout = attention.Layout(
        len(requests), bounds(q_lens), bounds([r[1].shape[2] for r in requests])
    )
    out = attention.attention(query, key, value, layout, parallel=parallel)
    return list(out[0].split(q_lens))


def bounds(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()


def part(whole: Request, first: int, end: int) -> Request:
    """Queries [first, end) of a request, with the keys up to there."""
    query, key, value = whole
    return query[:, :, first:end], key[:, :, :end], value[:, :, :end]


def reference(one: Request) -> torch.Tensor:
    """(q, heads, dim) in float64."""
    query, key, value = (x.double() for x in one)
    mask = differentiable._causal(query, key)
    gqa = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=gqa)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (1, 128), (1, 129), (7, 150)])
def test_a_request_does_not_depend_on_its_batch(
    dtype: torch.dtype, lengths: tuple[int, int]
) -> None:
    probe = request(0, *lengths, dtype=dtype)
    others = [request(10, 1, 17, dtype=dtype), request(20, 23, 23, dtype=dtype)]
    alone = packed([probe])[0]
    for position in range(len(others) + 1):
        batch = [*others[:position], probe, *others[position:]]
        assert torch.equal(packed(batch)[position], alone)


@pytest.mark.parametrize("lengths", [(1, 127), (1, 129), (1, 300), (40, 200)])
def test_splits_in_turn_or_side_by_side_are_the_same(lengths: tuple[int, int]) -> None:
    batch = [request(0, *lengths), request(10, 3, 30)]
    for one, other in zip(packed(batch, True), packed(batch, False), strict=True):
        assert torch.equal(one, other)


def test_a_decoded_token_is_what_a_prefill_gives() -> None:
    whole = request(0, 200, 200, heads=2, kv_heads=1)
    prefill = packed([whole])[0]
    for position in (0, 16, 63, 64, 127, 128, 199):
        decoded = packed([part(whole, position, position + 1)])[0]
        assert torch.equal(decoded[0], prefill[position])


@pytest.mark.parametrize("cut", [1, 37, 128])
def test_a_chunk_is_what_the_whole_gives(cut: int) -> None:
    whole = request(0, 140, 140, heads=2, kv_heads=1)
    prefill = packed([whole])[0]
    assert torch.equal(packed([part(whole, cut, 140)])[0], prefill[cut:])
    assert torch.equal(packed([part(whole, 0, cut)])[0], prefill[:cut])


def test_the_same_check_catches_a_split_count_that_follows_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What not to do: as many splits as keep the device busy."""
    probe = request(0, 1, 256)
    together = packed([probe, request(10, 1, 256)])[0]
    monkeypatch.setattr(attention, "SPLIT", 64)
    assert not torch.equal(packed([probe])[0], together)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(6, 2, 64), (4, 4, 80), (8, 1, 96), (4, 1, 128), (2, 1, 256)]
)
def test_attention_is_right(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "dtype": dtype}
    requests = [request(0, 1, 140, **sizes), request(10, 20, 33, **sizes)]
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
    )
    for one, out in zip(requests, packed(requests), strict=True):
        torch.testing.assert_close(out, reference(one).to(dtype), **tolerance)


@pytest.mark.parametrize("q_len", [1, 40])
def test_padding_does_not_matter(q_len: int) -> None:
    """A left-padded row gives what it gives without its padding, and zeros in its padding."""
    padding, k_len = 9, 40
    probe = request(0, q_len, k_len)
    pads = (padding if q_len > 1 else 0, padding, padding)
    padded = [F.pad(x, (0, 0, n, 0), value=7.0) for x, n in zip(probe, pads, strict=True)]
    whole = request(10, q_len + pads[0], k_len + padding)
    batch = [torch.cat(pair) for pair in zip(padded, whole, strict=True)]
    starts = torch.tensor([padding, 0], device=DEVICE)
    out = differentiable.padded_attention(*batch, starts, None, None)
    alone = differentiable.padded_attention(*probe, None, None, None)
    assert torch.equal(out[:1, pads[0] :], alone)
    assert not out[0, : pads[0]].any()
    torch.testing.assert_close(alone[0], reference(probe).float())
    assert torch.equal(packed([probe])[0], alone[0])


def test_gradients_are_those_of_the_stock_formula() -> None:
    inputs = [x.requires_grad_() for x in request(0, 20, 20)]
    differentiable.padded_attention(*inputs, None, None, None).square().sum().backward()
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    reference((doubles[0], doubles[1], doubles[2])).square().sum().backward()
    for x, expected in zip(inputs, doubles, strict=True):
        torch.testing.assert_close(x.grad, expected.grad.float(), rtol=1e-4, atol=1e-5)


def test_gradients_of_packed_requests_are_those_of_each() -> None:
    requests = [request(0, 20, 20), request(3, 5, 5), request(6, 3, 9)]
    inputs = [torch.cat(parts, dim=2).requires_grad_() for parts in zip(*requests, strict=True)]
    lengths = {"cu_seq_lens_q": bounds([20, 5, 3]), "cu_seq_lens_k": bounds([20, 5, 9])}
    differentiable.packed_attention(*inputs, None, lengths).square().sum().backward()
    doubles = [[x.double().requires_grad_() for x in one] for one in requests]
    sum(reference((one[0], one[1], one[2])).square().sum() for one in doubles).backward()
    for x, parts in zip(inputs, zip(*doubles, strict=True), strict=True):
        expected = torch.cat([part.grad for part in parts], dim=2)
        torch.testing.assert_close(x.grad, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"dim": 320}, "heads of 320"),
        ({"heads": 5, "kv_heads": 2}, "5 heads over 2"),
        ({"dtype": torch.float64}, "float64"),
    ],
)
def test_what_it_does_not_take_is_named(sizes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        packed([request(0, 1, 4, **sizes)])
