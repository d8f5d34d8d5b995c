"""Batch-invariant causal attention on the CPU: one stock call per prompt.

The stock kernel computes a packed batch in one call, and its blocks over the keys depend on the
other requests in that call. Here each request of several queries has a call of its own: its
queries, its keys, its order of summation. Operands whose heads do not start on cache lines are
copied, since MKL rounds small products differently if their alignment differs. Requests of one
query, as in decoding, share calls that do not depend on each other: see `queries.py`.

This holds `batch-size`, `position`, `neighbours` and `padding`. Under `chunking` and
`prefill-decode` the number of queries of a call changes, and with it the stock kernel's blocks.
With `query_by_query` each query of a prompt is computed as it is in decoding: then these two hold
as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from detcheck.kernels.cpu.packing import Packing, Plan, padded_packing_of
from detcheck.kernels.cpu.queries import CACHE_LINE_BYTES, attend_queries
from detcheck.kernels.cpu.stock import stock_attention


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float | None = None,
    *,
    query_by_query: bool = False,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of requests packed along the length; returns (1, q, heads, dim).

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim). The last query of each segment
    is at its last key. Queries in no segment get zeros. With `window`, the number of keys that a
    query sees, all queries must be computed by themselves.
    """
    if query_by_query or not packing.prompts:
        plan = packing.one_by_one if window is None else packing.within(window)
        return _by_themselves(query, key, value, plan, scaling)
    if len(packing.segments) > len(packing.prompts):
        out = _by_themselves(query, key, value, packing.singles, scaling)
    else:
        out = query.new_zeros((1, query.shape[2], query.shape[1], query.shape[3]))
    for part in packing.prompts:
        queries = slice(part.q, part.q + part.q_len)
        k, v = (on_cache_lines(x.narrow(2, part.k, part.k_len)) for x in (key, value))
        out[:, queries] = _attend(query[:, :, queries], k, v, scaling)
    return out


def _by_themselves(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    scaling: float | None,
) -> torch.Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_queries(q, k, v, plan, scaling)[None]


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
    batch, heads, q_len, dim = query.shape
    k_len = key.shape[2]
    if q_len == 1 or query_by_query:
        plan = padded_packing_of(tuple(padding), q_len, k_len).one_by_one
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        return attend_queries(q, k, v, plan, scaling).view(batch, q_len, heads, dim)
    out = query.new_zeros((batch, q_len, heads, dim))
    for row, start in enumerate(padding):
        skip = max(0, start - (k_len - q_len))
        one = slice(row, row + 1)
        if skip < q_len:
            k, v = (on_cache_lines(x[one, :, start:]) for x in (key, value))
            out[one, skip:] = _attend(query[one, :, skip:], k, v, scaling)
    return out


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Causal attention of one request whose last query is at its last key, of several queries.

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim), on cache lines; returns
    (1, q, heads, dim).
    """
    q_len, k_len = query.shape[2], key.shape[2]
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
