"""Batch-invariant attention, registered where transformers looks for `sdpa`.

Stock attention computes a packed batch in one call, whose blocks over the keys then depend on who
else is in it. Here each request attends in a call of its own: its queries, its keys, its order of
summation. A batched call would not do, even of requests of equal lengths: PyTorch's CPU kernel
gives each thread a scratch buffer, the buffers differ in alignment, and MKL's small products round
differently for it, so an entry's result depends on its position in the batch. For the same reason
operands that do not start and step on cache lines are copied to where they do.

On a GPU a kernel of our own does it (`triton/attention.py`), for all requests in one call and
under all seven relations. On the CPU it is invariant to batch size, position, neighbours and
padding; under `chunking` and `prefill-decode` the number of queries of a call changes, and with it
the stock kernel's blocks. `query_by_query` mends that as well: each query of a prompt then has a
call of its own, as it would have when decoded.
"""

from __future__ import annotations

import inspect
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache as memoise
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.errors import UsageError

CACHE_LINE_BYTES = 64
_HIDDEN = -1e4
"""What a mask adds where nothing is to be seen is this or less; what is above is a bias."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Where one request lies in packed tensors: queries `[q, q + q_len)`, keys `[k, k + k_len)`."""

    q: int
    q_len: int
    k: int
    k_len: int


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface.

    query (batch, heads, q, head_dim), key and value (batch, kv_heads, k, head_dim); returns
    (batch, q, heads, head_dim) and None. With `cu_seq_lens_q` and `…_k` the batch is 1 and they
    bound the requests packed along q and k; earlier keys are still in a paged `cache`, or come
    along (since transformers 5.24). Raises UsageError for what it cannot make invariant: soft caps,
    sinks, sliding windows, position biases, dropout.
    """
    _refuse_unsupported(module, dropout, kwargs)
    if cache is not None:
        key, value = _update_paged(module, cache, key, value, kwargs)
    elif kwargs.get("cu_seq_lens_q") is None:
        return _padded_batch(module, query, key, value, attention_mask, scaling, is_causal), None
    if query.is_cuda:
        _heard()  # holds there anyway
        from detcheck.kernels.triton.differentiable import packed_attention

        return packed_attention(query, key, value, scaling, kwargs), None
    out = query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))
    for part in _packed_segments(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]):
        queries = slice(part.q, part.q + part.q_len)
        keys = slice(part.k, part.k + part.k_len)
        out[:, queries] = _attend(query[:, :, queries], key[:, :, keys], value[:, :, keys], scaling)
    return out, None


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
    # (tokens, kv_heads, head_dim) comes back, and the lengths are by kind of layer where a model
    # has several.
    indices = {name: kwargs[name] for name in ("read_index", "write_index")}
    key, value = (x.transpose(0, 1).unsqueeze(0) for x in cache.update(**states, **indices))
    if isinstance(kwargs["cu_seq_lens_k"], dict):
        kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"]["full_attention"]
    return key, value


@memoise
def _takes_indices(cache_type: Any) -> bool:
    """Whether a paged cache is told what to read and write (5.17), or finds it in `kwargs`."""
    return "read_index" in inspect.signature(cache_type.update).parameters


def _refuse_unsupported(module: torch.nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    """One sentence for each feature that no invariant kernel covers yet."""
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
            "run it with --kernels stock or batch-invariant:matmul."
        )


_hears: list[Callable[[], None]] = []
"""Called where attention is computed query by query; empty where it need not be."""


def query_by_query(hear: Callable[[], None]) -> Callable[[], None]:
    """Attend to each query by itself, from now until the function that is returned is called.

    `hear` is called each time attention runs so.
    """
    _hears.append(hear)
    return lambda: _hears.remove(hear)


def _heard() -> bool:
    """Whether attention is to be computed query by query; tells those who asked."""
    for hear in _hears:
        hear()
    return bool(_hears)


def _packed_segments(cu_q: torch.Tensor, cu_k: torch.Tensor) -> Iterator[Segment]:
    """Requests from cumulative lengths, (requests + 1,) each; empty ones (padding) left out."""
    q_bounds, k_bounds = cu_q.tolist(), cu_k.tolist()
    for index in range(min(len(q_bounds), len(k_bounds)) - 1):
        q, k = q_bounds[index], k_bounds[index]
        q_len, k_len = q_bounds[index + 1] - q, k_bounds[index + 1] - k
        if q_len > 0 and k_len > 0:
            yield Segment(q, q_len, k, k_len)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Causal attention of one request whose last query is its last key.

    query (1, heads, q, dim), key and value (1, kv_heads, k, dim); returns (1, q, heads, dim).
    """
    heads, q_len, dim = query.shape[1:]
    kv_heads, k_len = key.shape[1], key.shape[2]
    if _heard() and q_len > 1:
        past = k_len - q_len
        key, value = _on_cache_lines(key), _on_cache_lines(value)
        rows = (
            _attend(query[:, :, at : at + 1], key[:, :, :end], value[:, :, :end], scaling)
            for at, end in enumerate(range(past + 1, k_len + 1))
        )
        return torch.cat(tuple(rows), dim=1)
    key, value = _on_cache_lines(key), _on_cache_lines(value)
    if q_len == 1:
        # One query: the heads that share a key-value head become its queries.
        query = _on_cache_lines(query.reshape(1, kv_heads, heads // kv_heads, dim))
        out = F.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.reshape(1, 1, heads, value.shape[3])
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
        enable_gqa=heads != kv_heads,
    )
    return out.transpose(1, 2)


def _on_cache_lines(x: torch.Tensor) -> torch.Tensor:
    """`x` (1, heads, length, dim) where each head starts on a cache line, else such a copy."""
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


def _padded_batch(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    is_causal: bool | None,
) -> torch.Tensor:
    """A batch of rows padded on the left: each attends without its padding."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if not causal:
        raise UsageError("Batch-invariant attention covers causal attention only.")
    q_len, k_len = query.shape[2], key.shape[2]
    if query.is_cuda:
        _heard()
        from detcheck.kernels.triton.differentiable import padded_attention

        padding = _known_padding(attention_mask, query.shape[0], k_len)
        return padded_attention(query, key, value, padding, scaling, attention_mask)
    padding = _known_padding(attention_mask, query.shape[0], k_len)
    starts = [0] * query.shape[0] if padding is None else padding.tolist()
    out = query.new_zeros((query.shape[0], q_len, query.shape[1], value.shape[3]))
    for row, start in enumerate(starts):
        # Queries that are padding themselves stay zero: nobody reads them.
        skip = max(0, start - (k_len - q_len))
        one = slice(row, row + 1)
        out[one, skip:] = _attend(
            query[one, :, skip:], key[one, :, start:], value[one, :, start:], scaling
        )
    return out


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
        # An inference tensor keeps no count of its changes; transformers makes a mask a forward.
        version = 0 if mask.is_inference() else mask._version
        key = (rows, k_len, version)
        if self._mask() is not mask or self._key != key:
            self._padding = _padding(mask, rows, k_len)
            self._mask, self._key = weakref.ref(mask), key
        return self._padding


_last_mask = threading.local()


def _known_padding(mask: torch.Tensor | None, rows: int, k_len: int) -> torch.Tensor | None:
    """As `_padding`, looking once a forward pass instead of once a layer."""
    if mask is None:
        return None
    if not hasattr(_last_mask, "value"):
        _last_mask.value = _LastMask()
    known: torch.Tensor | None = _last_mask.value.padding(mask, rows, k_len)
    return known
