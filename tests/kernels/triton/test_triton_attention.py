"""Triton's attention: right, and each query the same bits whatever the call, chunk or phase."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from under_test import DEVICE, DOT_DTYPES, attention, attention_layout, differentiable, random

from detcheck.errors import UsageError
from detcheck.kernels.triton import attention_shapes
from detcheck.kernels.triton.attention import PLAIN
from detcheck.kernels.triton.requests import attend_sequences

Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""query (1, heads, q, dim), key and value (1, kv_heads, k, dim)"""


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several splits from few keys."""
    cut_every(128, monkeypatch)


def cut_every(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_layout, "SPLIT", keys)
    attention._kept.clear()


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
    layout = attention_layout.Layout(
        len(requests), bounds(q_lens), bounds([r[1].shape[2] for r in requests])
    )
    out = attention.attention(query, key, value, layout, parallel=parallel)
    return list(out[0].split(q_lens))


def padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor | None = None
) -> torch.Tensor:
    keys = differentiable.PaddedKeys(starts)
    return differentiable.padded_attention(query, key, value, keys, PLAIN, None)


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
    cut_every(64, monkeypatch)
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


@pytest.mark.parametrize("parallel", [True, False])
def test_rows_after_the_last_request_are_zero(parallel: bool) -> None:
    """As under a CUDA graph, whose batch has a fixed size; requests without tokens follow."""
    whole = request(0, 3, 140, heads=2, kv_heads=1)
    query = torch.cat([whole[0], random(9, 1, 2, 20, 64)], dim=2)
    lengths = torch.tensor([0, 3, 3, 3], device=DEVICE).int()
    keys = torch.tensor([0, 140, 140, 140], device=DEVICE).int()
    layout = attention_layout.Layout(3, lengths, keys)
    out = attention.attention(query, *whole[1:], layout, parallel=parallel)
    assert torch.equal(out[0, :3], packed([whole], parallel)[0])
    assert out.shape[1] == 23
    assert not out[0, 3:].any()


def test_lengths_may_lie_apart_in_memory() -> None:
    """Columns of a table, and one start that is expanded over a batch."""
    requests = [request(0, 1, 40), request(10, 3, 30)]
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*requests, strict=True))
    table = torch.tensor([[0, 0], [1, 40], [4, 70]], device=DEVICE).int()
    out = attention.attention(query, key, value, attention_layout.Layout(2, *table.unbind(1)))
    assert torch.equal(out[0], torch.cat(packed(requests)))
    batch = [torch.cat((x, x)) for x in requests[0]]
    starts = torch.tensor([7], device=DEVICE)
    expanded = padded(*batch, starts.expand(2))
    copied = padded(*batch, starts.repeat(2))
    assert torch.equal(expanded, copied)


@pytest.mark.parametrize("q_len", [1, 40])
def test_padding_does_not_matter(q_len: int) -> None:
    """A left-padded row gives what it gives without its padding, and zeros in its padding."""
    padding, k_len = 9, 40
    probe = request(0, q_len, k_len)
    pads = (padding if q_len > 1 else 0, padding, padding)
    longer = [F.pad(x, (0, 0, n, 0), value=7.0) for x, n in zip(probe, pads, strict=True)]
    whole = request(10, q_len + pads[0], k_len + padding)
    batch = [torch.cat(pair) for pair in zip(longer, whole, strict=True)]
    starts = torch.tensor([padding, 0], device=DEVICE)
    out = padded(*batch, starts)
    alone = padded(*probe)
    assert torch.equal(out[:1, pads[0] :], alone)
    assert not out[0, : pads[0]].any()
    torch.testing.assert_close(alone[0], reference(probe).float())
    assert torch.equal(packed([probe])[0], alone[0])


@pytest.mark.parametrize("q_len", [1, 5])
def test_padding_does_not_matter_to_splits_side_by_side(q_len: int) -> None:
    padding, k_len, sizes = 70, 140, {"heads": 2, "kv_heads": 1}
    probe = request(0, q_len, k_len, **sizes)
    others = request(10, q_len, k_len + padding, **sizes)
    longer = [probe[0], *(F.pad(x, (0, 0, padding, 0), value=7.0) for x in probe[1:])]
    batch = [torch.cat(pair) for pair in zip(longer, others, strict=True)]
    layout = attention_layout.Layout(2, starts=torch.tensor([padding, 0], device=DEVICE))
    out = attention.attention(*batch, layout, parallel=True)
    assert torch.equal(out[0], packed([probe])[0])
    assert torch.equal(out[1], packed([others])[0])


def counted_schedules(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    make = attention_layout.Layout._made

    def watched(*args: object) -> object:
        made.append(1)
        return make(*args)

    monkeypatch.setattr(attention_layout.Layout, "_made", watched)
    return made


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("group", [1, 3, 4, 8, 16, 128])
def test_a_split_holds_whole_tiles_and_whole_blocks(
    capability: tuple[int, int], group: int
) -> None:
    """Else a row of a tile would meet a split of which it sees no key, and its sum would be NaN."""
    for dtype, dim in itertools.product((torch.bfloat16, torch.float32), (64, 128, 256)):
        for shape in sum(attention_shapes.shapes(group, dim, dtype, capability).values(), ()):
            positions = shape.rows // (1 << (group - 1).bit_length())
            assert positions > 0
            assert attention_layout.SPLIT % positions == 0
            assert attention_layout.SPLIT % shape.block_n == 0


def test_requests_are_searched_for_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the next step's lengths are written into the same tensors, as under CUDA graphs."""
    made = counted_schedules(monkeypatch)
    query, key, value = request(0, 8, 60)
    kwargs = {"cu_seq_lens_q": bounds([5, 3]), "cu_seq_lens_k": bounds([20, 40])}

    def layer(index: int) -> torch.Tensor:
        return differentiable.packed_attention(query, key, value, PLAIN, kwargs, index)

    first = [layer(index) for index in range(3)]
    assert len(made) == 1
    assert torch.equal(first[0], first[2])
    kwargs["cu_seq_lens_q"].copy_(bounds([1, 7]))
    second = [layer(index) for index in range(3)]
    assert len(made) == 2
    fresh = differentiable.packed_attention(
        query, key, value, PLAIN, {**kwargs, "cu_seq_lens_q": bounds([1, 7])}
    )
    assert torch.equal(second[0], fresh)
    assert torch.equal(second[2], fresh)
    assert not torch.equal(second[0], first[0])


def test_a_schedule_is_not_shared_by_calls_that_no_layer_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = counted_schedules(monkeypatch)
    kwargs = {"cu_seq_lens_q": bounds([5, 3]), "cu_seq_lens_k": bounds([20, 40])}
    for _ in range(2):
        differentiable.packed_attention(*request(0, 8, 60), PLAIN, kwargs)
    assert len(made) == 2


def test_a_shape_of_another_class_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape whose blocks of keys differ adds up in another order, and is found by experiment."""
    kind = attention.AttentionKind(2, 64, torch.float32, torch.device(DEVICE))
    alternatives, ways = attention._class.__wrapped__(kind)
    anchor = ways["prefill"][0]
    odd, good = replace(anchor, block_n=64), replace(anchor, num_stages=2)
    assert not alternatives.agrees(odd)
    assert alternatives.choose("decode", lambda: ((odd, good),)) == good
    assert alternatives.choose("other", lambda: ((odd,),)) == anchor


def test_gradients_are_those_of_the_stock_formula() -> None:
    inputs = [x.requires_grad_() for x in request(0, 20, 20)]
    padded(*inputs).square().sum().backward()
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    reference((doubles[0], doubles[1], doubles[2])).square().sum().backward()
    for x, expected in zip(inputs, doubles, strict=True):
        torch.testing.assert_close(x.grad, expected.grad.float(), rtol=1e-4, atol=1e-5)


def test_gradients_of_packed_requests_are_those_of_each() -> None:
    requests = [request(0, 20, 20), request(3, 5, 5), request(6, 3, 9)]
    inputs = [torch.cat(parts, dim=2).requires_grad_() for parts in zip(*requests, strict=True)]
    lengths = {"cu_seq_lens_q": bounds([20, 5, 3]), "cu_seq_lens_k": bounds([20, 5, 9])}
    differentiable.packed_attention(*inputs, PLAIN, lengths).square().sum().backward()
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


def test_sequences_packed_into_rows_have_the_bits_that_they_have_alone() -> None:
    """As a trainer packs them: two rows of several sequences each, one of them padded."""
    lengths = ((21, 40, 3), (50, 14))
    sequences = [
        [request(10 * row + at, n, n) for at, n in enumerate(each)]
        for row, each in enumerate(lengths)
    ]
    rows = [[torch.cat(parts, 2) for parts in zip(*each, strict=True)] for each in sequences]
    query, key, value = (torch.cat(parts) for parts in zip(*rows, strict=True))
    cuts = [(0, 21, 61, 64), (0, 50, 64)]
    out = attend_sequences(query, key, value, cuts, PLAIN)
    for row, each in enumerate(sequences):
        for at, one in enumerate(each):
            start, end = cuts[row][at : at + 2]
            assert torch.equal(out[row, start:end], packed([one])[0])
            torch.testing.assert_close(
                out[row, start:end].double(), reference(one), rtol=1e-4, atol=1e-5
            )
