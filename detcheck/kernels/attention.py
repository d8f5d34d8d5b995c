"""Batch-invariant attention, registered where transformers looks for `sdpa`.

This module has transformers' interface: it reads masks, padding and packed lengths, writes the
paged cache, and hands each request to the kernel of its device. On the CPU that is
`cpu/attention.py`. On a GPU it is `triton/attention.py`, which takes all requests in one call and
holds all relations, `chunking` and `prefill-decode` included.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache as memoise
from typing import Any

import torch

from detcheck.errors import UsageError
from detcheck.kernels.cpu import attention as cpu_attention
from detcheck.kernels.cpu.attention import Segment

_HIDDEN = -1e4
"""A mask's value for a hidden key is this or less; a value between this and 0 is a bias."""


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

    query (batch, heads, q, head_dim), key and value (batch, kv_heads, k, head_dim); returns
    (batch, q, heads, head_dim) and None. With `cu_seq_lens_q` and `cu_seq_lens_k` the batch is 1
    and they bound the requests packed along q and k. Earlier keys are either in a paged `cache`
    or part of `key` (since transformers 5.24). `query_by_query` computes each query of a prompt
    on its own, as `fully-invariant` needs on the CPU. Raises UsageError for features that it does
    not cover: soft caps, sinks, sliding windows, position biases, dropout.
    """
    _refuse_unsupported(module, dropout, kwargs)
    if cache is not None:
        key, value = _update_paged(module, cache, key, value, kwargs)
    if cache is not None or kwargs.get("cu_seq_lens_q") is not None:
        return _packed_batch(query, key, value, scaling, query_by_query, kwargs), None
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if not causal:
        raise UsageError("Batch-invariant attention covers causal attention only.")
    return _padded_batch(query, key, value, attention_mask, scaling, query_by_query), None


def _update_paged(
    module: Any, cache: Any, key: torch.Tensor, value: torch.Tensor, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write new keys and values, (1, kv_heads, new, head_dim), to the cache; returns all of them.

    `cu_seq_lens_k` in `kwargs` becomes this layer's.
    """
    states = {"key_states": key, "value_states": value, "layer_idx": module.layer_idx}
    cache_type: Any = type(cache)
    if not _takes_indices(cache_type):
        updated: tuple[torch.Tensor, torch.Tensor] = cache.update(**states, kwargs=kwargs)
        return updated
    # transformers 5.17 returns (tokens, kv_heads, head_dim). If a model has several kinds of
    # layers, the lengths are a dictionary by kind.
    indices = {name: kwargs[name] for name in ("read_index", "write_index")}
    key, value = (x.transpose(0, 1).unsqueeze(0) for x in cache.update(**states, **indices))
    if isinstance(kwargs["cu_seq_lens_k"], dict):
        kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"]["full_attention"]
    return key, value


@memoise
def _takes_indices(cache_type: Any) -> bool:
    """True if a paged cache takes its indices as arguments (5.17), false if inside `kwargs`."""
    return "read_index" in inspect.signature(cache_type.update).parameters


def _refuse_unsupported(module: torch.nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    """Raise UsageError, one sentence, for a feature that no invariant kernel covers yet."""
    found = [
        name
        for name, present in (
            ("soft-capped logits", kwargs.get("softcap") is not None),
            ("attention sinks", getattr(module, "sinks", None) is not None),
            ("a sliding window", kwargs.get("sliding_window") is not None),
            ("a position bias", kwargs.get("position_bias") is not None),
            ("dropout", dropout > 0),
        )
        if present
    ]
    if found:
        raise UsageError(
            f"Batch-invariant attention does not cover {found[0]}, which this model uses: "
            'use `kernels="stock"` or `kernels="batch-invariant:matmul"`.'
        )


def _packed_batch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    query_by_query: bool,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Requests packed along the length; returns (1, q, heads, dim)."""
    if query.is_cuda:
        from detcheck.kernels.triton.differentiable import packed_attention

        return packed_attention(query, key, value, scaling, kwargs)
    segments = _packed_segments(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"])
    return cpu_attention.packed_attention(
        query, key, value, segments, scaling, query_by_query=query_by_query
    )


def _packed_segments(cu_q: torch.Tensor, cu_k: torch.Tensor) -> Iterator[Segment]:
    """Requests from cumulative lengths, (requests + 1,) each; empty ones (padding) left out."""
    q_bounds, k_bounds = cu_q.tolist(), cu_k.tolist()
    for index in range(min(len(q_bounds), len(k_bounds)) - 1):
        q, k = q_bounds[index], k_bounds[index]
        q_len, k_len = q_bounds[index + 1] - q, k_bounds[index + 1] - k
        if q_len > 0 and k_len > 0:
            yield Segment(q, q_len, k, k_len)


def _padded_batch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    query_by_query: bool,
) -> torch.Tensor:
    """A batch padded on the left: each row attends without its padding."""
    padding = _known_padding(attention_mask, query.shape[0], key.shape[2])
    if query.is_cuda:
        from detcheck.kernels.triton.differentiable import padded_attention

        return padded_attention(query, key, value, padding, scaling, attention_mask)
    starts = [0] * query.shape[0] if padding is None else padding.tolist()
    return cpu_attention.padded_attention(
        query, key, value, starts, scaling, query_by_query=query_by_query
    )


def _padding(mask: torch.Tensor | None, rows: int, k_len: int) -> torch.Tensor | None:
    """Keys of left padding in each row (rows,), from a mask (…, 1, q, k_len); None without mask.

    Queries that are padding may see nothing, themselves or all. Raises UsageError for masks that
    are not causal with left padding: windows and chunks, several sequences in a row, biases.
    """
    if mask is None:
        return None
    mask = mask[..., :k_len]
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    num_seen = visible.sum(-1)
    starts = k_len - num_seen[:, -1]
    key = torch.arange(k_len, device=mask.device)
    query = key[k_len - visible.shape[1] :, None]
    is_padding = query[:, 0] < starts[:, None]
    causal = ((key <= query) & (key >= starts[:, None, None]) == visible).all(-1)
    unread = is_padding & ((num_seen <= 1) | (num_seen == k_len))
    biased = mask.dtype != torch.bool and bool(((mask != 0) & (mask > _HIDDEN)).any())
    if mask.shape[1] != 1 or biased or not bool((causal | unread).all()):
        raise UsageError("Batch-invariant attention needs causal masks with padding on the left.")
    return starts.expand(rows)


class _LastMask:
    """The mask that was read last, and its padding: the layers of a model share one mask."""

    def __init__(self) -> None:
        self._mask: Callable[[], torch.Tensor | None] = lambda: None
        self._key: tuple[int, int, int] | None = None
        self._padding: torch.Tensor | None = None

    def padding(self, mask: torch.Tensor, rows: int, k_len: int) -> torch.Tensor | None:
        # An inference tensor has no version counter; transformers makes a mask each forward pass.
        version = 0 if mask.is_inference() else mask._version
        key = (rows, k_len, version)
        if self._mask() is not mask or self._key != key:
            self._padding = _padding(mask, rows, k_len)
            self._mask, self._key = weakref.ref(mask), key
        return self._padding


_last_mask = threading.local()


def _known_padding(mask: torch.Tensor | None, rows: int, k_len: int) -> torch.Tensor | None:
    """As `_padding`, but read once a forward pass instead of once a layer."""
    if mask is None:
        return None
    if not hasattr(_last_mask, "value"):
        _last_mask.value = _LastMask()
    known: torch.Tensor | None = _last_mask.value.padding(mask, rows, k_len)
    return known
