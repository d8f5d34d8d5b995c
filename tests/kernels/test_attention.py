"""Attention gives a request the same bits in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sweeps import few
from torch.nn import functional as F
from transformers import AttentionInterface

from detcheck.errors import UsageError
from detcheck.kernels.attention import attention
from detcheck.kernels.mode import batch_invariant

HEADS, KV_HEADS = 6, 2
OP = "transformers::sdpa"


class PagedCache:
    """Stands in for transformers' paged cache: the keys are packed already."""

    def update(self, key_states: Any, value_states: Any, **_: Any) -> Any:
        return key_states, value_states


class IndexedCache:
    """The same cache with the interface of transformers 5.17."""

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, read_index: Any, write_index: Any
    ) -> Any:
        assert (layer_idx, read_index, write_index) == (0, "read", "write")
        return tuple(x.squeeze(0).transpose(0, 1) for x in (key_states, value_states))


class Layer(torch.nn.Module):
    layer_idx = 0
    is_causal = True


def request(seed: int, q_len: int, k_len: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value of one request, (1, heads, length, dim)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, q_len), (KV_HEADS, k_len), (KV_HEADS, k_len)]
    return [torch.randn(1, h, n, dim, generator=generator).to(dtype) for h, n in shapes]


def packed(requests: list[list[torch.Tensor]], function: Any = attention) -> list[torch.Tensor]:
    """Attend all requests in one packed call; returns each one's output."""
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*requests, strict=True))
    q_lens = [r[0].shape[2] for r in requests]
    cu_q = torch.tensor([0, *q_lens]).cumsum(0)
    cu_k = torch.tensor([0, *(r[1].shape[2] for r in requests)]).cumsum(0)
    out, _ = function(
        Layer(), query, key, value, None, cache=PagedCache(), cu_seq_lens_q=cu_q, cu_seq_lens_k=cu_k
    )
    return list(out.split(q_lens, dim=1))


def batched_sdpa(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
    """The planted fault: requests of equal length as entries of one stock call."""
    n = query.shape[2]
    q = query[0].transpose(0, 1).reshape(n, KV_HEADS, HEADS // KV_HEADS, -1)
    k, v = (x[0].unflatten(1, (n, -1)).transpose(0, 1) for x in (key, value))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.reshape(1, n, HEADS, -1), None


@few("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 5), (1, 41), (1, 513), (39, 39), (7, 300)])
def test_a_request_does_not_depend_on_its_batch(
    dtype: torch.dtype, dim: int, lengths: tuple[int, int]
) -> None:
    probe = request(0, *lengths, dim, dtype)
    others = [
        request(1, 1, 17, dim, dtype),
        request(2, 23, 23, dim, dtype),
        request(3, *lengths, dim, dtype),
    ]
    alone = packed([probe])[0]
    for position in range(len(others) + 1):
        batch = [*others[:position], probe, *others[position:]]
        assert torch.equal(packed(batch)[position], alone)


@pytest.mark.usefixtures("two_threads")
def test_the_same_check_catches_a_batched_stock_call() -> None:
    probe = request(0, 1, 41, 64, torch.float32)
    batch = [request(seed, 1, 41, 64, torch.float32) for seed in range(1, 8)]
    alone = packed([probe], batched_sdpa)[0]
    together = packed([*batch, probe], batched_sdpa)[-1]
    assert not torch.equal(together, alone)


@pytest.mark.parametrize("lengths", [(1, 30), (30, 30), (4, 30)])
def test_attention_is_right(lengths: tuple[int, int]) -> None:
    q, k, v = request(5, *lengths, 64, torch.float64)
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    q_len, k_len = lengths
    mask = torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len)
    scores = (q @ k.transpose(2, 3) / 8).masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    got = packed([request(5, *lengths, 64, torch.float64)])[0]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("by_layer_type", [True, False])
def test_the_paged_cache_of_older_versions_gives_the_same(by_layer_type: bool) -> None:
    parts = request(4, 30, 30, 64, torch.float32)
    bounds = torch.tensor([0, 30])
    keys = {"sliding_attention": bounds - 1, "full_attention": bounds} if by_layer_type else bounds
    indices = {"read_index": "read", "write_index": "write"}
    out, _ = attention(
        Layer(),
        *parts,
        None,
        cache=IndexedCache(),
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=keys,
        **indices,
    )
    assert torch.equal(out, packed([parts])[0])


def test_keys_that_the_layer_took_out_of_the_cache_give_the_same() -> None:
    """As since transformers 5.24, which passes `is_causal=False` for packed requests."""
    parts = request(4, 3, 30, 64, torch.float32)
    bounds = {"cu_seq_lens_q": torch.tensor([0, 3]), "cu_seq_lens_k": torch.tensor([0, 30])}
    out, _ = attention(Layer(), *parts, None, is_causal=False, **bounds)
    assert torch.equal(out, packed([parts])[0])


@pytest.mark.parametrize("q_len", [1, 6])
@pytest.mark.parametrize("boolean", [True, False])
def test_padding_does_not_matter(q_len: int, boolean: bool) -> None:
    """A row padded on the left has the bits that it has without its padding."""
    k_len, padding = 40, 9
    probe = request(0, q_len if q_len == 1 else k_len, k_len, 64, torch.float32)
    whole = request(1, q_len if q_len == 1 else k_len + padding, k_len + padding, 64, torch.float32)
    q_pad = 0 if q_len == 1 else padding
    padded = [F.pad(x, (0, 0, n, 0)) for x, n in zip(probe, (q_pad, padding, padding), strict=True)]
    query, key, value = (torch.cat(pair) for pair in zip(padded, whole, strict=True))
    rows = torch.ones(query.shape[2], k_len + padding, dtype=torch.bool)
    visible = rows.tril(k_len + padding - query.shape[2]).repeat(2, 1, 1, 1)
    visible[0, :, :, :padding] = False
    mask = visible if boolean else torch.zeros(visible.shape).masked_fill(~visible, -1e30)
    out, _ = attention(Layer(), query, key, value, mask)
    alone, _ = attention(Layer(), *probe, None)
    assert torch.equal(out[:1, q_pad:], alone)


@pytest.mark.parametrize(
    ("kwargs", "feature"),
    [
        ({"sliding_window": 1}, "sliding window of 1"),
        ({"sliding_window": 0}, "sliding window of 0"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(kwargs: dict[str, Any], feature: str) -> None:
    with pytest.raises(UsageError, match=feature):
        attention(Layer(), *request(0, 1, 4, 64, torch.float32), None, **kwargs)


def test_a_query_that_sees_another_key_alone_is_no_padding() -> None:
    """The only token of a prompt, in a static cache: its key is the first of several places."""
    query, key, value = request(0, 1, 8, 64, torch.float32)
    mask = torch.zeros(1, 1, 1, 8, dtype=torch.bool)
    mask[..., 0] = True
    expected, _ = attention(Layer(), query, key[:, :, :1], value[:, :, :1], None)
    assert torch.equal(attention(Layer(), query, key, value, mask)[0], expected)
    assert expected.any()  # padding gets zeros
    mask[..., 0] = False
    assert not attention(Layer(), query, key, value, mask)[0].any()


def blocks(*lengths: int) -> torch.Tensor:
    """Several sequences in one row, or chunks of one: the last query sees only the last of them."""
    parts = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
    return torch.block_diag(*parts).bool()[None, None]


def test_sequences_of_one_token_are_attended() -> None:
    """The first of them sees itself alone, and so does each query of attention in chunks of one."""
    query, key, value = request(0, 6, 6, 64, torch.float32)
    out, _ = attention(Layer(), query, key, value, blocks(1, 1, 3, 1))
    stock = F.scaled_dot_product_attention(
        query, key, value, attn_mask=blocks(1, 1, 3, 1), enable_gqa=True
    )
    torch.testing.assert_close(out, stock.transpose(1, 2))


@pytest.mark.parametrize("seen", ["nothing", "itself", "all"])
def test_what_padding_itself_may_see_does_not_matter(seen: str) -> None:
    parts = request(0, 6, 6, 64, torch.float32)
    mask = blocks(6)
    mask[..., :2] = False
    alone, _ = attention(Layer(), *(x[:, :, 2:] for x in parts), None)
    if seen != "nothing":
        mask[..., :2, :] = True if seen == "all" else torch.eye(2, 6, dtype=torch.bool)
    out, _ = attention(Layer(), *parts, mask)
    assert torch.equal(out[:, 2:], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(5, 1, 18), (1, 1, 18), (5, 5, 66)])
@pytest.mark.parametrize("length", [14, 73])
def test_rows_that_start_off_cache_lines_do_not_matter(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, length: int
) -> None:
    """With odd head sizes a query of a batch may start off a cache line."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(4, 1, heads, dim, generator=generator).to(dtype).transpose(1, 2)
    key, value = torch.randn(2, 4, kv_heads, length, dim, generator=generator).to(dtype)
    batch, _ = attention(Layer(), query, key, value, None)
    for row in range(4):
        parts = (x[row : row + 1].clone() for x in (query, key, value))
        assert torch.equal(attention(Layer(), *parts, None)[0], batch[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_heads_of_a_copy_start_where_those_of_a_cache_do(dtype: torch.dtype) -> None:
    """Keys that are a part of a larger cache, and the same keys in memory of their own."""
    query, key, value = request(6, 1, 31, 66, dtype)
    cached = [x.new_zeros(1, KV_HEADS, 64, 66) for x in (key, value)]
    for whole, part in zip(cached, (key, value), strict=True):
        whole[:, :, 32:63] = part
    there, _ = attention(Layer(), query, *(x[:, :, 32:63] for x in cached), None)
    alone, _ = attention(Layer(), query, key, value, None)
    assert torch.equal(there, alone)


def by_token(x: torch.Tensor) -> torch.Tensor:
    """The same values, laid out token by token as a paged cache returns them."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 41), (1, 513), (39, 39), (7, 300)])
def test_the_layout_of_keys_does_not_matter(
    dtype: torch.dtype, dim: int, lengths: tuple[int, int]
) -> None:
    """A trainer has keys head by head, a paged cache token by token."""
    query, key, value = request(8, *lengths, dim, dtype)
    (by_head,) = packed([[query, key, value]])
    (paged,) = packed([[query, by_token(key), by_token(value)]])
    batch = packed([[query, by_token(key), by_token(value)], request(9, 3, 17, dim, dtype)])
    assert torch.equal(paged, by_head)
    assert torch.equal(batch[0], by_head)


def test_requests_between_gaps_get_their_own_keys() -> None:
    """Keys and queries that belong to no request, as padding of a packed batch."""
    query, key, value = request(8, 12, 90, 64, torch.float32)
    bounds = {"q": [0, 0, 1, 12], "k": [0, 10, 60, 60]}  # the first and last request are empty
    cu = {f"cu_seq_lens_{name}": torch.tensor(ends) for name, ends in bounds.items()}
    out, _ = attention(Layer(), query, key, value, None, **cu)
    alone = packed([[query[:, :, :1], key[:, :, 10:60], value[:, :, 10:60]]])
    assert torch.equal(out[:, :1], alone[0])
    assert out[:, 1:].eq(0).all()


def in_table(*args: Any, **kwargs: Any) -> Any:
    """Attention as transformers calls it now: ours if a mode is on."""
    return AttentionInterface._global_mapping["sdpa"](*args, **kwargs)


def step(states: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
    """Queries [start, stop) of a request as a step of their own, after those before them."""
    query, key, value = states
    (out,) = packed([[query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop]]], in_table)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 128])
def test_fully_invariant_attention_does_not_depend_on_how_a_prompt_is_cut(
    dim: int, dtype: torch.dtype
) -> None:
    states = request(3, 70, 70, dim, dtype)
    with batch_invariant(("attention", "prefill")) as mode:
        whole = step(states, 0, 70)
        chunks = torch.cat([step(states, 0, 31), step(states, 31, 70)], dim=1)
        decoded = torch.cat([step(states, at, at + 1) for at in range(70)], dim=1)
    assert torch.equal(chunks, whole)
    assert torch.equal(decoded, whole)
    assert mode.proof().self_check == "passed"
    overrides = mode.proof().overrides
    assert (overrides[OP], overrides[f"{OP}, query by query"]) == (73, 73)


def decoding_differs() -> bool:
    """True if a prompt that is decoded token by token differs from the same prompt prefilled."""
    states = request(3, 70, 70, 64, torch.float32)
    decoded = torch.cat([step(states, at, at + 1) for at in range(70)], dim=1)
    return not torch.equal(decoded, step(states, 0, 70))


def test_without_prefill_decoding_differs() -> None:
    """The twin: a different number of queries is a different order of summation."""
    with batch_invariant(("attention",)):
        assert decoding_differs()


@pytest.mark.parametrize("first_to_end", ["attention", "prefill"])
def test_the_attention_families_may_end_in_any_order(first_to_end: str) -> None:
    stock = AttentionInterface._global_mapping["sdpa"]
    modes = {family: batch_invariant(family) for family in ("attention", "prefill")}
    for mode in modes.values():
        mode.__enter__()
    assert not decoding_differs()
    modes.pop(first_to_end).__exit__(None, None, None)
    assert decoding_differs() is (first_to_end == "prefill")
    for mode in modes.values():
        mode.__exit__(None, None, None)
    assert AttentionInterface._global_mapping["sdpa"] is stock


def test_an_exception_ends_query_by_query() -> None:
    stock = AttentionInterface._global_mapping["sdpa"]
    with pytest.raises(ZeroDivisionError), batch_invariant(("attention", "prefill")):
        raise ZeroDivisionError
    assert AttentionInterface._global_mapping["sdpa"] is stock


@pytest.mark.parametrize("query_by_query", [False, True])
@pytest.mark.parametrize("value_dim", [64, 48])
@pytest.mark.parametrize("q_len", [1, 9])
def test_results_are_contiguous_as_those_of_stock(
    q_len: int, value_dim: int, query_by_query: bool
) -> None:
    """Models take views of them."""
    query, key, value = request(0, q_len, 9, 64, torch.float32)
    several = [torch.cat((x, x)) for x in (query, key, value[..., :value_dim])]
    out, _ = attention(Layer(), *several, None, query_by_query=query_by_query)
    assert out.is_contiguous()
    narrow, _ = attention(Layer(), *several, None, sliding_window=3, query_by_query=query_by_query)
    assert narrow.is_contiguous()
