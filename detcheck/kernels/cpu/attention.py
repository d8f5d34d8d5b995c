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

import torch
from torch.nn import functional as F

CACHE_LINE_BYTES = 64


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
    out = query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))
    for part in segments:
        queries = slice(part.q, part.q + part.q_len)
        keys = slice(part.k, part.k + part.k_len)
        out[:, queries] = _attend(
            query[:, :, queries], key[:, :, keys], value[:, :, keys], scaling, query_by_query
        )
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
        out[one, skip:] = _attend(
            query[one, :, skip:],
            key[one, :, start:],
            value[one, :, start:],
            scaling,
            query_by_query,
        )
    return out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    query_by_query: bool,
) -> torch.Tensor:
    """Causal attention of one request whose last query is at its last key.

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim); returns (1, q, heads, dim).
    """
    key, value = _on_cache_lines(key), _on_cache_lines(value)
    q_len, k_len = query.shape[2], key.shape[2]
    if q_len == 1:
        return _attend_one_query(query, key, value, scaling)
    if query_by_query:
        past = k_len - q_len
        rows = (
            _attend(query[:, :, at : at + 1], key[:, :, :end], value[:, :, :end], scaling, True)
            for at, end in enumerate(range(past + 1, k_len + 1))
        )
        return torch.cat(tuple(rows), dim=1)
    mask = None
    if k_len > q_len:
        mask = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device)
        mask = mask.tril(k_len - q_len)
    out = F.scaled_dot_product_attention(
        _on_cache_lines(query),
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _attend_one_query(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """As `_attend`, for q = 1: the heads that share a key-value head become its queries."""
    heads, dim = query.shape[1], query.shape[3]
    kv_heads = key.shape[1]
    query = _on_cache_lines(query.reshape(1, kv_heads, heads // kv_heads, dim))
    out = F.scaled_dot_product_attention(query, key, value, scale=scaling)
    return out.reshape(1, 1, heads, value.shape[3])


def _on_cache_lines(x: torch.Tensor) -> torch.Tensor:
    """`x` (1, heads, length, dim) if each head starts on a cache line, else a copy that does."""
    row_bytes = x.shape[3] * x.element_size()
    aligned = (
        x.data_ptr() % CACHE_LINE_BYTES == 0
        and x.stride(1) * x.element_size() % CACHE_LINE_BYTES == 0
        and x.stride(2) == x.shape[3]
        and x.stride(3) == 1
    )
    if aligned:
        return x
    whole_lines = CACHE_LINE_BYTES // math.gcd(CACHE_LINE_BYTES, row_bytes)
    length = -(-x.shape[2] // whole_lines) * whole_lines
    copy = x.new_empty((*x.shape[:2], length, x.shape[3]))[:, :, : x.shape[2]]
    return copy.copy_(x)
