"""Batch-invariant attention, registered where transformers looks for `sdpa`.

This module has transformers' interface: it reads masks, padding and packed lengths, writes the
paged cache, and hands each request to the kernel of its device. On the CPU that is
`cpu/attention.py`, `cpu/masked.py` for windows, chunks, sinks and soft caps, and `cpu/any_mask.py`
for biases, attention in both directions and other masks. On a GPU it is
`triton/attention.py`, which takes all requests in one call, windows, chunks, sinks and soft caps
among them, and holds all relations, `chunking` and `prefill-decode` included; for other masks it is
`cpu/any_mask.py` there too, whose sums in order have kernels for GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.chosen_keys import attend_chosen, chooses_keys
from detcheck.kernels.cpu import attention as cpu_attention
from detcheck.kernels.cpu.any_mask import attend as attend_any_mask
from detcheck.kernels.cpu.masked import attend_block, visible_mask
from detcheck.kernels.cpu.packing import Packing, Plan, Segment, packing_of
from detcheck.kernels.cpu.queries import attend_queries
from detcheck.kernels.paged_cache import (
    group_of_reads,
    read_in_order,
    update_paged,
    window_of,
)
from detcheck.kernels.scores import Scores
from detcheck.kernels.unsupported import refuse_unsupported
from detcheck.kernels.visible_keys import (
    HIDDEN,
    Block,
    UnreadableMaskError,
    read_mask_once,
    rows_alone,
    used_places,
    window_firsts,
    without_mask,
)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cache: Any = None,
    *,
    query_by_query: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface.

    query (batch, heads, q, head_dim), key (batch, kv_heads, k, head_dim), value (batch, kv_heads,
    k, value_dim); returns (batch, q, heads, value_dim) and None. With `cu_seq_lens_q` and
    `cu_seq_lens_k` the batch is 1 and they bound the requests packed along q and k. Earlier keys
    are either in a paged `cache` or part of `key` (since transformers 5.24). Of `kwargs` it reads
    `sliding_window` (keys that a query sees, itself included), `softcap` and `s_aux` (sinks,
    (heads,)) and `position_bias` (batch or 1, heads, q, k), added to the scores. `query_by_query`
    computes each query of a prompt on its own, as `fully-invariant` needs on the CPU. On a GPU
    it reads `position_ids` (batch or 1, q), if a layer has a window: a cache may have dropped keys.
    Raises UsageError for features that it does not cover: dropout, position biases of packed
    requests, and `output_attentions` of a model with `eager` attention, which would return weights.
    """
    packed = cache is not None or kwargs.get("cu_seq_lens_q") is not None
    refuse_unsupported(module, dropout, kwargs, packed=packed)
    window = window_of(module, cache, kwargs)
    scores = Scores(scaling, kwargs.get("softcap"), _sinks(module, kwargs))
    plan = None
    if cache is not None:
        if scores.plain and window is None and query.device.type == "cpu":
            plan = _order_reads(module, cache, query_by_query, kwargs)
        key, value = update_paged(module, cache, key, value, window, kwargs)
    query, key, value = _autocast(query, key, value)
    value_dim = value.shape[3]
    if value_dim != key.shape[3]:
        scaling = key.shape[3] ** -0.5 if scaling is None else scaling
        query, key, value = _equally_wide(query, key, value)
        scores = replace(scores, scaling=scaling)
    if plan is not None:
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        out = attend_queries(q, k, v, plan, scaling, gathered=True).unsqueeze(0)
    elif packed:
        kwargs["layer"] = getattr(module, "layer_idx", None)
        out = _packed_batch(query, key, value, scores, window, query_by_query, kwargs)
    else:
        kwargs["causal"] = getattr(module, "is_causal", True) if is_causal is None else is_causal
        kwargs["chosen"] = chooses_keys(module)
        out = _rows(query, key, value, attention_mask, scores, window, query_by_query, kwargs)
    if out.shape[3] != value_dim:
        out = out[..., :value_dim]
    return out.contiguous(), None


def _rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
    window: int | None,
    query_by_query: bool,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Attention of a batch of rows, which may be padded: (batch, q, heads, value_dim)."""
    causal, bias = kwargs["causal"], kwargs.get("position_bias")
    if mask is None and causal and query.shape[2] > 1:
        # PyTorch's causal mask begins at the first key: later keys are free places of a cache.
        key, value = (x[:, :, : query.shape[2]] for x in (key, value))
    if not causal or bias is not None:
        return _any_mask(query, key, value, mask, scores, window, bias, causal=causal)
    attend = partial(_one_causal_batch, scores, window, query_by_query)
    positions = kwargs.get("position_ids")
    if mask is None:
        return attend(query, key, value, None, positions)
    if kwargs["chosen"] and query.shape[2] > 1:
        return attend_chosen(query, key, value, mask, positions, attend)
    key, value, mask = used_places(query.shape[2], key, value, mask)
    return attend(query, key, value, mask, positions)


def _one_causal_batch(
    scores: Scores,
    window: int | None,
    query_by_query: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention of a batch on its device, without free places behind the keys."""
    if query.is_cuda:
        from detcheck.kernels.triton.requests import Window, attend_padded

        return attend_padded(query, key, value, mask, scores, Window(window, positions))
    return _padded_batch(query, key, value, mask, scores, window, query_by_query)


def _autocast(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors in the dtype of autocast, which casts the inputs of PyTorch's own attention.

    Under autocast a rotary embedding gives queries and keys in float32, and values come in 16 bits.
    """
    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return states
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in states)


def _equally_wide(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors (batch, heads, length, dim) with zeros up to the largest `dim` of them.

    Stock kernels for one size of heads then compute latent attention as well. The zeros add
    nothing to the scores, and the results that they give are dropped.
    """
    widest = max(x.shape[3] for x in states)
    return tuple(F.pad(x, (0, widest - x.shape[3])) for x in states)


def _padded_batch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scores: Scores,
    window: int | None,
    query_by_query: bool,
) -> torch.Tensor:
    """A batch of padded rows, or of rows that hold several sequences, each without its padding."""
    if attention_mask is None:
        keys = without_mask(len(query), query.shape[2], key.shape[2], window, query.device)
    else:
        try:
            keys = read_mask_once(attention_mask, len(query), key.shape[2])
        except UnreadableMaskError:
            return _row_by_row(query, key, value, attention_mask, scores, query_by_query)
    if scores.plain and not keys.narrow and not keys.right_padded:
        starts = keys.starts.tolist()
        return cpu_attention.padded_attention(
            query, key, value, starts, scores.scaling, query_by_query=query_by_query
        )
    return _attend_blocks(query, key, value, keys.blocks, scores, query_by_query)


def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scores: Scores,
    query_by_query: bool,
) -> torch.Tensor:
    """A batch in which some row's mask is no interval: each row is computed as if alone."""
    if len(query) == 1 and query_by_query and query.shape[2] > 1:
        return _one_by_one(query, key, value, mask, scores)
    if len(query) == 1:
        return attend_any_mask(query, key, value, mask[..., : key.shape[2]], scores)
    return torch.cat(
        [
            _padded_batch(q, k, v, own, scores, None, query_by_query)
            for q, k, v, own in rows_alone(query, key, value, mask)
        ]
    )


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scores: Scores,
) -> torch.Tensor:
    """A row whose mask is no interval for some queries: each by the kernel that decodes it."""
    q_len, k_len = query.shape[2], key.shape[2]
    parts = []
    for at in range(q_len):
        stop = k_len - q_len + at + 1
        own = mask[:, :, at : at + 1, :k_len]
        later = own[..., stop:]
        if not bool((later if later.dtype == torch.bool else later > HIDDEN).any()):
            own = own[..., :stop]
        keys, values = (x[:, :, : own.shape[-1]] for x in (key, value))
        keys, values, own = used_places(1, keys, values, own)
        parts.append(_padded_batch(query[:, :, at : at + 1], keys, values, own, scores, None, True))
    return torch.cat(parts, dim=1)


def _any_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
    window: int | None,
    bias: torch.Tensor | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """Attention in both directions, or with a bias of positions."""
    q_len, k_len = query.shape[2], key.shape[2]
    if mask is not None:
        mask = mask[..., :k_len]
    elif causal:
        mask = visible_mask(window_firsts(window, q_len, k_len), k_len, query.device)
    return attend_any_mask(query, key, value, mask, scores, bias)


def _attend_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    parts: Sequence[tuple[int, Block]],
    scores: Scores,
    query_by_query: bool,
) -> torch.Tensor:
    """Each block of each row by itself; queries in no block (padding) get zeros."""
    out = query.new_zeros((query.shape[0], query.shape[2], query.shape[1], value.shape[3]))
    for row, block in parts:
        one = slice(row, row + 1)
        out[one, block.q : block.q + block.q_len] = attend_block(
            query[one], key[one], value[one], block, scores, query_by_query=query_by_query
        )
    return out


def _sinks(module: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """A layer's sinks (heads,); None if it has none."""
    sinks: torch.Tensor | None = kwargs.get("s_aux")
    return getattr(module, "sinks", None) if sinks is None else sinks


def _packed_batch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    window: int | None,
    query_by_query: bool,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Requests packed along the length; returns (1, q, heads, value_dim)."""
    if query.is_cuda:
        from detcheck.kernels.triton.differentiable import packed_attention

        return packed_attention(query, key, value, scores, kwargs, kwargs["layer"], window)
    packing = _packing_of(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"])
    bites = window is not None and packing.longest > window
    if scores.plain and (query_by_query or not packing.prompts or not bites):
        return cpu_attention.packed_attention(
            query,
            key,
            value,
            packing,
            scores.scaling,
            query_by_query=query_by_query,
            window=window if bites else None,
        )
    parts = [(0, _block(one, window)) for one in packing.segments]
    return _attend_blocks(query, key, value, parts, scores, query_by_query)


def _packing_of(q_bounds: torch.Tensor, k_bounds: torch.Tensor) -> Packing:
    return packing_of(tuple(q_bounds.tolist()), tuple(k_bounds.tolist()))


def _order_reads(
    module: torch.nn.Module, cache: Any, query_by_query: bool, kwargs: dict[str, Any]
) -> Plan | None:
    """Let a paged cache return the keys as the calls of a plan take them, so without a second copy.

    None if the cache returns them as they are: if queries of a prompt are computed together, or if
    the layer does not read all its keys by an index.
    """
    group = group_of_reads(module, cache, kwargs)
    if group is None:
        return None
    number, kind = group
    packing = _packing_of(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"][kind])
    if not packing.segments or (packing.prompts and not query_by_query):
        return None
    read_in_order(kwargs, number, packing.one_by_one.keys)
    return packing.one_by_one


def _block(segment: Segment, window: int | None) -> Block:
    """A packed request, without the keys before its first query's window."""
    firsts = window_firsts(window, segment.q_len, segment.k_len)
    k = firsts[0]
    own = tuple(first - k for first in firsts)
    return Block(segment.q, segment.q_len, segment.k + k, segment.k_len - k, own)
