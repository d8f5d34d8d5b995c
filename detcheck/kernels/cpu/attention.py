"""Batch-invariant causal attention on the CPU: one stock call per request.

The stock kernel computes a packed batch in one call, and its blocks over the keys depend on the
other requests in that call. Here each request has a call of its own: its queries, its keys, its
order of summation. A batched call of requests of equal lengths would not be invariant either.
PyTorch's CPU kernel gives each thread a scratch buffer, the buffers differ in alignment, and MKL
rounds small products differently if the alignment differs. For the same reason operands whose
heads do not start on cache lines are copied.

This holds `batch-size`, `position`, `neighbours` and `padding`. Under `chunking` and
`prefill-decode` the number of queries of a call changes, and with it the stock kernel's blocks.
With `query_by_query` each query of a prompt has a call of its own, as it has when it is decoded:
then these two hold as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from detcheck.kernels.cpu.stock import stock_attention, stock_kernel

CACHE_LINE_BYTES = 64

FLASH_OP = "_scaled_dot_product_flash_attention_for_cpu"
"""The aten op that `F.scaled_dot_product_attention` calls on the CPU."""
_flash = getattr(torch.ops.aten, FLASH_OP).default
_stock_flash = stock_kernel(FLASH_OP)


@dataclass(frozen=True, slots=True)
class Segment:
    """Where one request lies in packed tensors: queries `[q, q + q_len)`, keys `[k, k + k_len)`."""

    q: int
    q_len: int
    k: int
    k_len: int


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Iterable[Segment],
    scaling: float | None = None,
    *,
    query_by_query: bool = False,
) -> torch.Tensor:
    """Causal attention of requests packed along the length; returns (1, q, heads, dim).

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim). The last query of each segment
    is at its last key. Queries in no segment get zeros.
    """
    parts = tuple(segments)
    bounds = [(part.k, part.k_len) for part in parts]
    keys = [*zip(_cut(key, bounds), _cut(value, bounds), strict=True)]
    if parts and [part.q for part in parts if part.q_len == 1] == [*range(query.shape[2])]:
        return _decode(query, keys, scaling)
    out = query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))
    for part, own in zip(parts, keys, strict=True):
        queries = slice(part.q, part.q + part.q_len)
        out[:, queries] = _attend(query[:, :, queries], *own, scaling, query_by_query)
    return out


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding: Sequence[int],
    scaling: float | None = None,
    *,
    query_by_query: bool = False,
) -> torch.Tensor:
    """Causal attention of a batch padded on the left; returns (batch, q, heads, dim).

    query (batch, heads, q, dim), key and value (batch, kv_heads, k, dim); `padding` has the number
    of padded keys of each row. Queries that are padding get zeros.
    """
    q_len, k_len = query.shape[2], key.shape[2]
    out = query.new_zeros((query.shape[0], q_len, query.shape[1], value.shape[3]))
    for row, start in enumerate(padding):
        skip = max(0, start - (k_len - q_len))
        one = slice(row, row + 1)
        keys = on_cache_lines(key[one, :, start:]), on_cache_lines(value[one, :, start:])
        out[one, skip:] = _attend(query[one, :, skip:], *keys, scaling, query_by_query)
    return out


def _cut(x: torch.Tensor, bounds: Sequence[tuple[int, int]]) -> Sequence[torch.Tensor]:
    """Parts of `x` (1, heads, length, dim), given as (start, length), each on cache lines."""
    lengths = [length for _, length in bounds]
    if lengths == [x.shape[2]]:
        parts: Sequence[torch.Tensor] = (x,)
    elif [start for start, _ in bounds] == [0, *accumulate(lengths[:-1])]:
        parts = x.narrow(2, 0, sum(lengths)).split(lengths, 2)  # faster than one by one
    else:
        parts = tuple(x.narrow(2, start, length) for start, length in bounds)
    if _every_row_on_cache_line(x):
        return parts
    return [on_cache_lines(part) for part in parts]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    query_by_query: bool,
) -> torch.Tensor:
    """Causal attention of one request whose last query is at its last key.

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim), on cache lines; returns
    (1, q, heads, dim).
    """
    q_len, k_len = query.shape[2], key.shape[2]
    if q_len == 1 or query_by_query:
        lengths = range(k_len - q_len + 1, k_len + 1)
        keys = [(key.narrow(2, 0, length), value.narrow(2, 0, length)) for length in lengths]
        return _decode(query, keys, scaling)
    mask = None
    if k_len > q_len:
        mask = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device)
        mask = mask.tril(k_len - q_len)
    out = stock_attention(
        on_cache_lines(query),
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _decode(
    query: torch.Tensor,
    keys: Sequence[tuple[torch.Tensor, torch.Tensor]],
    scaling: float | None,
) -> torch.Tensor:
    """Each query with keys and values of its own; returns (1, q, heads, dim).

    query (1, heads, q, dim); `keys` has a key and a value (1, kv_heads, k, dim) for each query, on
    cache lines. The heads that share a key-value head become the queries of one call.
    """
    _, heads, q_len, dim = query.shape
    key, value = keys[0]
    kv_heads = key.shape[1]
    rows = query.transpose(1, 2).reshape(q_len, kv_heads, heads // kv_heads, dim).contiguous()
    each: Sequence[torch.Tensor] = rows.split(1)
    if not _every_row_on_cache_line(rows):
        each = [on_cache_lines(row) for row in each]
    if value.shape[3] == dim:
        flash = _flash if _seen_by_others(query, key, value) else _stock_flash
        out = [flash(row, *own, scale=scaling)[0] for row, own in zip(each, keys, strict=True)]
    else:
        out = [
            stock_attention(row, *own, scale=scaling) for row, own in zip(each, keys, strict=True)
        ]
    return torch.cat(out).view(1, q_len, heads, value.shape[3])


def _seen_by_others(*tensors: torch.Tensor) -> bool:
    """True if autograd or a dispatch mode has to see each op."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _every_row_on_cache_line(x: torch.Tensor) -> bool:
    """True if each row of `x` (batch, heads, length, dim) is contiguous, on a cache line."""
    steps = (x.stride(0), x.stride(1), x.stride(2))
    return (
        x.stride(3) == 1
        and x.data_ptr() % CACHE_LINE_BYTES == 0
        and all(step * x.element_size() % CACHE_LINE_BYTES == 0 for step in steps)
    )


def on_cache_lines(x: torch.Tensor) -> torch.Tensor:
    """`x` (1, heads, length, dim) if each row of each head starts on a cache line, else a copy.

    If `dim` is not a whole number of cache lines, only the heads start on cache lines.
    """
    size = x.element_size()
    aligned = (
        x.data_ptr() % CACHE_LINE_BYTES == 0
        and x.stride(1) * size % CACHE_LINE_BYTES == 0
        and (x.stride(2) == x.shape[3] or x.stride(2) * size % CACHE_LINE_BYTES == 0)
        and x.stride(3) == 1
    )
    if aligned:
        return x
    whole_lines = CACHE_LINE_BYTES // math.gcd(CACHE_LINE_BYTES, x.shape[3] * size)
    length = -(-x.shape[2] // whole_lines) * whole_lines
    copy = x.new_empty((*x.shape[:2], length, x.shape[3]))[:, :, : x.shape[2]]
    return copy.copy_(x)
