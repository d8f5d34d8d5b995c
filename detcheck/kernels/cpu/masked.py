"""Batch-invariant attention of one request on the CPU: windows, chunks, sinks and soft caps.

Each block of a request has a call of its own, whose shapes and masks come from the request alone.
A long prompt with a window is computed in parts of `QUERIES` queries, each with the keys that they
see. A query by itself (decoding, or `query_by_query`) gets exactly the keys that it sees, so a
rolling cache and a whole cache give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from detcheck.kernels.cpu.attention import packed_attention
from detcheck.kernels.cpu.matmul import stock_bmm_out
from detcheck.kernels.cpu.packing import Plan, Segment, packing_of
from detcheck.kernels.cpu.queries import CACHE_LINE_BYTES, attend_queries
from detcheck.kernels.cpu.stock import stock_attention
from detcheck.kernels.scores import Scores
from detcheck.kernels.visible_keys import Block

QUERIES = 128
"""Queries with a window that are computed together. More would see keys outside their windows."""


def attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block: Block,
    scores: Scores,
    *,
    query_by_query: bool = False,
) -> torch.Tensor:
    """Attention of one block; returns (1, q_len, heads, value_dim).

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim) of the row that holds the block.
    """
    query = query.narrow(2, block.q, block.q_len)
    key, value = (x.narrow(2, block.k, block.k_len) for x in (key, value))
    if scores.plain and not any(block.firsts):
        whole = packing_of((0, block.q_len), (0, block.k_len))
        return packed_attention(
            query, key, value, whole, scores.scaling, query_by_query=query_by_query
        )
    if scores.plain and (block.q_len == 1 or query_by_query):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        plan = _plan_of(block.firsts, block.k_len)
        return attend_queries(q, k, v, plan, scores.scaling)[None]
    if block.q_len > 1 and query_by_query:
        parts = [
            attend_block(query, key, value, _one_query(block, index), scores)
            for index in range(block.q_len)
        ]
        return torch.cat(parts, dim=1)
    if block.q_len > QUERIES and any(block.firsts):
        parts = [attend_block(query, key, value, part, scores) for part in _parts_of(block)]
        return torch.cat(parts, dim=1)
    mask = visible_mask(block.firsts, block.k_len, query.device) if any(block.firsts) else None
    if not scores.plain:
        return _written_out(query, key, value, mask, scores)
    out = stock_attention(
        _own_memory(query),
        _own_memory(key),
        _own_memory(value),
        attn_mask=mask,
        scale=scores.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@lru_cache(maxsize=16)
def _plan_of(firsts: tuple[int, ...], k_len: int) -> Plan:
    """The last queries of `k_len` keys, given the first key that each of them sees."""
    past = k_len - len(firsts) + 1
    return Plan([Segment(q, 1, first, past + q - first) for q, first in enumerate(firsts)])


@lru_cache(maxsize=16)
def _parts_of(block: Block) -> tuple[Block, ...]:
    """Blocks of `QUERIES` queries, in tensors that are cut to `block`, with the keys they see."""
    past = block.k_len - block.q_len
    parts = []
    for at in range(0, block.q_len, QUERIES):
        firsts = block.firsts[at : at + QUERIES]
        k, stop = firsts[0], past + at + len(firsts)
        own = tuple(first - k for first in firsts)
        parts.append(Block(at, len(firsts), k, stop - k, own))
    return tuple(parts)


def _one_query(block: Block, index: int) -> Block:
    """Query `index` of a block whose tensors are cut to it already."""
    first = block.firsts[index]
    stop = block.k_len - block.q_len + index + 1
    return Block(index, 1, first, stop - first, (0,))


def visible_mask(firsts: Sequence[int], k_len: int, device: torch.device) -> torch.Tensor:
    """(queries, k_len) of booleans: the keys that each of the last queries sees.

    `firsts` has the first key of each query; the last is its own position.
    """
    key = torch.arange(k_len, device=device)
    position = key[k_len - len(firsts) :, None]
    return (key <= position) & (key >= torch.tensor(firsts, device=device)[:, None])


def _written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
) -> torch.Tensor:
    """Attention as products and a softmax in float32, for one block of one request."""
    _, heads, q_len, dim = query.shape
    kv_heads, k_len = key.shape[1:3]
    group = heads // kv_heads
    rows = _own_memory(query.reshape(kv_heads, group * q_len, dim))
    scaling = dim**-0.5 if scores.scaling is None else scores.scaling
    weights = _products(rows, _own_memory(key[0]).transpose(1, 2)).float() * scaling
    if scores.softcap is not None:
        weights = torch.tanh(weights / scores.softcap) * scores.softcap
    weights = weights.view(kv_heads, group, q_len, k_len)
    if mask is None and q_len > 1:
        mask = visible_mask((0,) * q_len, k_len, query.device)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(kv_heads, group, 1, 1).expand(-1, -1, q_len, -1)
        weights = torch.cat((weights, sinks), -1)
    # A matrix: the stock softmax, since the keys here are the block's own.
    weights = weights.flatten(0, 2).softmax(-1)[:, :k_len].to(value.dtype)
    out = _products(weights.reshape(kv_heads, group * q_len, k_len), _own_memory(value[0]))
    return out.view(1, heads, q_len, -1).transpose(1, 2)


class _Products(torch.autograd.Function):
    """The stock batch of products, whatever the mode overrides.

    Its shapes come from one request alone. The mode's own products would first look for the
    classes of each length of a request.
    """

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        out = left.new_empty((left.shape[0], left.shape[1], right.shape[2]))
        result: torch.Tensor = stock_bmm_out(left, right, out=out)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = ctx.saved_tensors
        return grad @ right.mT, left.mT @ grad


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(batch, M, K) by (batch, K, N), to (batch, M, N)."""
    out: torch.Tensor = _Products.apply(left, right)
    return out


def _own_memory(x: torch.Tensor) -> torch.Tensor:
    """`x`, contiguous and starting on a cache line."""
    x = x.contiguous()
    return x if x.data_ptr() % CACHE_LINE_BYTES == 0 else x.clone()
