"""Attention with rotary positions: one product for queries, keys and values, one rotation for two.

Over a paged cache, the layers of a decoding step share their indices, see `steps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from detcheck.kernels.cpu.linear import multiply
from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.packed_weight import PackedWeight
from detcheck.kernels.fused.calls import Calls, Forward, Ops, counter, is_plain
from detcheck.kernels.fused.projections import Projections, ProjectionsOfModules, copies_of, fits
from detcheck.kernels.fused.rotations import NAME, own_of
from detcheck.kernels.fused.steps import Step, step_of

_Arguments = dict[str, Any]
_States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Form:
    """How the attention of a class differs from Llama's."""

    window: str = ""
    """Where its window is: in an attribute of the `module` or of the `config`; empty: nowhere."""
    norms: bool = False
    """True if queries and keys pass `q_norm` and `k_norm`."""

    def arguments(self, module: Any) -> _Arguments:
        """What the module passes to the attention interface beside its states."""
        found = {"scaling": module.scaling}
        if self.window:
            holder = module if self.window == "module" else module.config
            found["sliding_window"] = getattr(holder, "sliding_window", None)
        return found


@dataclass(frozen=True, slots=True)
class AttentionOperands:
    """What a fused call needs beside its input and its step."""

    layers: Projections
    qkv: PackedWeight
    out: PackedWeight
    dim: int
    """Size of a head."""
    heads: tuple[int, int, int]
    """Of queries, keys and values."""


class FusedAttention:
    """The fused form of one class."""

    ops: ClassVar[Ops] = {"matmul": {"aten::linear": 4}}
    """The overrides that a call stands for, beside attention itself."""

    def __init__(self, own: Any, calls: Calls, form: Form = Form()):
        """`own` is the forward of the class; fused calls are counted in `calls`."""
        self._own = own
        self.in_place: Forward = own
        """The forward that the class has now."""
        self._form = form
        self._names: dict[str, Any] = own.__globals__
        self._rotate = own_of(self._names[NAME])
        self._half = self._rotate.__globals__["rotate_half"]
        self._count = counter(calls, self.ops)
        self._known = ProjectionsOfModules(("q_proj", "k_proj", "v_proj"), last="o_proj")

    def forward(self) -> Forward:
        """The forward to put in place of the class's own."""

        def forward(
            module: Any,
            hidden_states: torch.Tensor,
            position_embeddings: Any = None,
            attention_mask: torch.Tensor | None = None,
            past_key_values: Any = None,
            **kwargs: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            x, found, step = hidden_states, None, None
            caches = (attention_mask, past_key_values)
            if is_plain(x):
                step = step_of(position_embeddings, module.layer_idx, x, module.head_dim)
            if step is not None:
                found = self.operands(module, x, step, numerics())
            if step is not None and found is not None:
                self._count()
                return self.compute(module, x, found, step, caches, kwargs)
            computed: tuple[torch.Tensor, torch.Tensor | None] = self._own(
                module, x, position_embeddings, *caches, **kwargs
            )
            return computed

        return forward

    def operands(
        self, module: Any, x: torch.Tensor, step: Step, settings: tuple[object, ...]
    ) -> AttentionOperands | None:
        """What a call for a plain `x` (batch, tokens, hidden) needs; None if the own must run."""
        layers = self._known.find(module)
        if layers is None or module.training or self.is_patched():
            return None
        copies, dim = copies_of(layers, x, settings), module.head_dim
        if copies is None or any(width % dim for width in copies[0].widths):
            return None
        if not layers.turns_alike:
            whole = multiply(x, copies[0], layers.bias).unflatten(-1, (-1, dim))
            layers.turns_alike = _turns_as(self._rotate, whole, step)
        heads = [width // dim for width in copies[0].widths]
        found = AttentionOperands(layers, *copies, dim, (heads[0], heads[1], heads[2]))
        return found if layers.turns_alike else None

    def is_patched(self) -> bool:
        """True if somebody replaced the functions that apply positions."""
        rotate = own_of(self._names.get(NAME))
        return rotate is not self._rotate or rotate.__globals__.get("rotate_half") is not self._half

    def compute(
        self,
        module: Any,
        x: torch.Tensor,
        operands: AttentionOperands,
        step: Step,
        caches: tuple[torch.Tensor | None, Any],
        kwargs: _Arguments,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of a plain `x` (batch, tokens, hidden), with the module's weights, if any.

        `caches` are the mask and the cache of keys and values that the module got.
        """
        interface = step.interface(module.config, self._names)
        states, given = self._states(module, x, operands, step), self._form.arguments(module)
        out = weights = None
        if caches[1] is None and given.get("sliding_window") is None:
            out = _paged(module, states, step, interface, kwargs)
        if out is None:
            out, weights = _usual(module, states, interface, caches, {**given, **kwargs})
        out = out.reshape(*x.shape[:-1], -1).contiguous()
        last = operands.layers.last
        if not fits(out, operands.out):
            return last(out), weights
        return multiply(out, operands.out, last.bias), weights

    def _states(
        self, module: Any, x: torch.Tensor, operands: AttentionOperands, step: Step
    ) -> _States:
        """Queries, keys and values, each (batch, tokens, heads, head_dim), with positions."""
        whole = multiply(x, operands.qkv, operands.layers.bias)
        whole = whole.view(*x.shape[:-1], -1, operands.dim)
        queries, keys, values = operands.heads
        if not self._form.norms:
            both, value = torch.split_with_sizes(whole, (queries + keys, values), 2)
            query, key = torch.split_with_sizes(step.turned(both), (queries, keys), 2)
            return query, key, value
        query, key, value = torch.split_with_sizes(whole, operands.heads, 2)
        query, key = module.q_norm(query.contiguous()), module.k_norm(key.contiguous())
        return step.turned(query), step.turned(key), value


def _turns_as(rotate: Any, states: torch.Tensor, step: Step) -> bool:
    """True if positions are applied to (batch, tokens, heads, head_dim) as `rotate` does it."""
    x = states.transpose(1, 2)
    expected, _ = rotate(x, x, *step.positions)
    return torch.equal(expected.transpose(1, 2), step.turned(states))


def _paged(
    module: Any, states: _States, step: Step, interface: Any, kwargs: _Arguments
) -> torch.Tensor | None:
    """Queries by themselves over a paged cache, (tokens, heads, head_dim); None if it is not so."""
    cache, query_by_query = kwargs.get("cache"), getattr(interface, "query_by_query", None)
    if cache is None or query_by_query is None or len(states[0]) != 1:
        return None
    reads = step.reads(module, cache, query_by_query, kwargs)
    if reads is None:
        return None
    interface.count()
    query, key, value = states
    layer = module.layer_idx
    part = cache.layer_to_allocator[layer]
    key, value = part.update(key[0], value[0], layer, reads.read, reads.write)
    return reads.attend(query[0], key, value, module.scaling)


def _usual(
    module: Any,
    states: _States,
    interface: Any,
    caches: tuple[torch.Tensor | None, Any],
    arguments: _Arguments,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the module itself does with its states: (batch, tokens, heads, head_dim), weights."""
    query, key, value = (each.contiguous().transpose(1, 2) for each in states)
    mask, past = caches
    if past is not None:
        key, value = past.update(key, value, module.layer_idx)
    out, weights = interface(module, query, key, value, mask, dropout=0.0, **arguments)
    return out, weights
