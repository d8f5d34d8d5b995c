"""What all attention layers of a forward pass have in common, worked out at the first of them."""

from __future__ import annotations

import inspect
import threading
import weakref
from dataclasses import dataclass, field
from functools import cache as memoise
from typing import Any

import torch

from detcheck.kernels.cpu.packing import Plan, packing_of
from detcheck.kernels.cpu.queries import OneCall, attend_queries
from detcheck.kernels.paged_cache import group_of_reads

_UPDATE = ["key_states", "value_states", "layer_idx", "read_index", "write_index"]
_OF_A_PASS = frozenset(
    (
        "block_table",
        "cache",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "is_causal",
        "logits_indices",
        "logits_processor_args",
        "max_length_k",
        "max_length_q",
        "max_seqlen_k",
        "max_seqlen_q",
        "position_ids",
        "read_index",
        "use_cache",
        "write_index",
    )
)
"""Arguments of a pass that change nothing but where keys lie."""


@dataclass(slots=True)
class PagedReads:
    """Where the layers of one group read and write a paged cache."""

    plan: Plan
    """The calls of attention; they take the keys in the order of `read`."""
    read: torch.Tensor
    write: torch.Tensor
    _shape: Any = None
    _one_call: OneCall | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Attention of queries (q, heads, dim), with keys and values as they are read."""
        shape = (query.shape, key.shape[1], query.dtype)
        if self._shape != shape:
            serves = OneCall.serves(self.plan, query, key.shape[1])
            self._one_call = OneCall(self.plan, query, key.shape[1]) if serves else None
            self._shape = shape
        if self._one_call is not None:
            return self._one_call.attend(query, key, value, scaling)
        return attend_queries(query, key, value, self.plan, scaling, gathered=True)


@dataclass(slots=True)
class Step:
    """One forward pass, as its attention layers see it."""

    positions: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines (batch or 1, tokens, head_dim), as the layers got them."""
    given_sin: torch.Tensor
    """A copy of the sines that the layers got."""
    layer: int
    """Index of the layer that asked last: they ask in order, or it is another pass."""
    cos: torch.Tensor
    """(batch or 1, tokens, 1, head_dim)"""
    sin: torch.Tensor
    """The same shape; the first half of `head_dim` is negated."""
    indices: Any = None
    """The pass's `read_index`."""
    groups: dict[int, PagedReads | None] = field(default_factory=dict)
    """By the number of a group of layers; None if it is served as any other attention."""

    _config: Any = None
    _interface: Any = None

    def interface(self, config: Any, names: dict[str, Any]) -> Any:
        """The attention interface of layers with this config; `names` are those of their module."""
        if self._config is not config:
            self._interface = names["ALL_ATTENTION_FUNCTIONS"].get_interface(
                config._attn_implementation, names["eager_attention_forward"]
            )
            self._config = config
        return self._interface

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary positions applied to (batch, tokens, heads, head_dim)."""
        half = x.shape[-1] // 2
        return (x * self.cos).add_(x.roll(half, -1).mul_(self.sin))

    def reads(
        self, module: Any, cache: Any, query_by_query: bool, kwargs: dict[str, Any]
    ) -> PagedReads | None:
        """Where this layer reads and writes a paged cache; None if that takes the usual way."""
        allocators = getattr(cache, "layer_to_allocator", None)
        if allocators is None:
            return None
        if self.indices is not kwargs.get("read_index"):
            self.indices, self.groups = kwargs.get("read_index"), {}
        number = allocators[module.layer_idx].index
        if number not in self.groups:
            self.groups[number] = _paged_reads(module, cache, query_by_query, kwargs)
        return self.groups[number]


class _Last:
    """The last step of a thread."""

    step: Step | None = None


class _LastOfThread(threading.local):
    def __init__(self) -> None:
        self.last = _Last()
        _lasts.add(self.last)


_lasts: weakref.WeakSet[_Last] = weakref.WeakSet()
"""Of all threads that live."""
_of_thread = _LastOfThread()


def step_of(positions: Any, layer: int | None, x: torch.Tensor, head_dim: int) -> Step | None:
    """The step that a layer with input `x` (batch, tokens, hidden) belongs to.

    None if its positions are not those of plain rotation.
    """
    if layer is None or type(positions) is not tuple or x.dim() != 3:
        return None
    cos, sin = positions
    last = _of_thread.last
    step = last.step
    if (
        step is not None
        and step.positions is positions
        and layer > step.layer
        and x.dtype == cos.dtype
        and torch.equal(step.given_sin, sin)  # a model may write new positions over the old ones
    ):
        step.layer = layer
        return step
    fit = cos.dtype == sin.dtype == x.dtype and cos.shape == sin.shape
    if not fit or cos.shape[1:] != (x.shape[1], head_dim) or head_dim % 2:
        return None
    if len(cos) not in (1, len(x)):
        return None
    first, second = sin.unsqueeze(2).chunk(2, -1)
    signed = torch.cat((first.neg(), second), -1)
    last.step = Step(positions, sin.clone(), layer, cos.unsqueeze(2), signed)
    return last.step


def forget_steps() -> None:
    """Free what the last step of each thread holds."""
    for last in tuple(_lasts):
        last.step = None


def _paged_reads(
    module: Any, cache: Any, query_by_query: bool, kwargs: dict[str, Any]
) -> PagedReads | None:
    if not kwargs.keys() <= _OF_A_PASS or kwargs.get("block_table") is not None:
        return None
    group = group_of_reads(module, cache, kwargs)
    part: Any = type(cache.layer_to_allocator[module.layer_idx])
    if group is None or not _takes_our_indices(part):
        return None
    number, kind = group
    bounds = (kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"][kind])
    packing = packing_of(*(tuple(each.tolist()) for each in bounds))
    if not packing.segments or (packing.prompts and not query_by_query):
        return None
    plan = packing.one_by_one
    read = kwargs["read_index"][number].index_select(0, plan.keys)
    return PagedReads(plan, read, kwargs["write_index"][number])


@memoise
def _takes_our_indices(allocator: Any) -> bool:
    """True if a layer's part of the cache has the update that is known here."""
    parameters = list(inspect.signature(allocator.update).parameters)
    return parameters[1:] == _UPDATE
