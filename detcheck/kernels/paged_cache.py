"""transformers' paged cache and the windows of its layers, as attention needs them."""

from __future__ import annotations

import inspect
from functools import cache as memoise
from typing import Any

import torch

from detcheck.errors import UsageError


def window_of(module: Any, cache: Any, kwargs: dict[str, Any]) -> int | None:
    """Keys that a query of this layer sees, itself included; None: all.

    A paged cache rolls by the model's window, whether or not the layer hands it over.
    """
    window: int | None = kwargs.get("sliding_window")
    if window is None and cache is not None:
        allocators = getattr(cache, "layer_to_allocator", None)
        if allocators is not None:
            window = getattr(allocators[module.layer_idx], "sliding_window", None)
    if window is not None and window < 2:
        raise UsageError(
            f"A sliding window of {window} is not covered: transformers keeps all keys for it. Set "
            "`sliding_window` in the model's config to 2 or more, or to null."
        )
    if _chunk_of(module) == 1:
        raise UsageError(
            "Attention in chunks of 1 is not covered: transformers keeps all keys for it. Set "
            "`attention_chunk_size` in the model's config to 2 or more."
        )
    return window


def _chunk_of(module: Any) -> int | None:
    """Tokens of a chunk of this layer's attention; None if it has no chunks."""
    config = getattr(module, "config", None)
    chunk: int | None = getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None) or ()
    layer = getattr(module, "layer_idx", None)
    chunked = layer is not None and layer < len(kinds) and kinds[layer] == "chunked_attention"
    return chunk if chunked else None


def update_paged(
    module: Any,
    cache: Any,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    kwargs: dict[str, Any],
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
    kind = "full_attention" if window is None else "sliding_attention"
    for name in ("cu_seq_lens_k", "max_seqlen_k"):
        if isinstance(kwargs.get(name), dict):
            kwargs[name] = kwargs[name][kind]
    return key, value


def group_of_reads(module: Any, cache: Any, kwargs: dict[str, Any]) -> tuple[int, str] | None:
    """The number and the kind of a layer's indices into a paged cache, if it reads by them.

    None for a cache that takes no indices inside `kwargs`, for a layer that keeps a window alone,
    and for a batch without earlier keys.
    """
    allocators, indices = getattr(cache, "layer_to_allocator", None), kwargs.get("read_index")
    cache_type: Any = type(cache)
    if allocators is None or indices is None or _takes_indices(cache_type):
        return None
    allocator = allocators[module.layer_idx]
    if getattr(allocator, "layer_type", None) != "full_attention":
        return None
    return (allocator.index, allocator.layer_type) if len(indices[allocator.index]) else None


def read_in_order(kwargs: dict[str, Any], group: int, order: torch.Tensor) -> None:
    """Let a paged cache return the keys `order` (indices of the packed keys) in this order."""
    indices = [*kwargs["read_index"]]
    indices[group] = indices[group].index_select(0, order)
    kwargs["read_index"] = indices


@memoise
def _takes_indices(cache_type: Any) -> bool:
    """True if a paged cache takes its indices as arguments (5.17), false if inside `kwargs`."""
    return "read_index" in inspect.signature(cache_type.update).parameters
