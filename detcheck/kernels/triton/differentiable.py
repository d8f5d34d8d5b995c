"""Attention as transformers calls it, padded or packed, with gradients if they are recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton.attention import attention
from detcheck.kernels.triton.attention_layout import Layout


class _Differentiable(torch.autograd.Function):
    """Forward by the kernel; backward by the stock formula, whose bits may depend on the batch."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        layout: Layout,
        scores: Scores,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, sinks, mask)
        ctx.scores = scores
        return attention(query, key, value, layout, scores)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *states, sinks, mask = ctx.saved_tensors
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in states)
            given = [query, key, value]
            if sinks is not None:
                given.append(sinks := sinks.detach().requires_grad_())
            visible = _causal(query, key) if mask is None else mask[..., : key.shape[2]]
            out = _stock(query, key, value, visible, replace(ctx.scores, sinks=sinks))
            grads = torch.autograd.grad(out, given, grad.transpose(1, 2))
        return (*grads, *(None for _ in range(7 - len(grads))))


def _stock(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """Attention by stock ops, (batch, heads, q, dim); the mask is boolean or added to scores."""
    grouped = query.shape[1] != key.shape[1]
    if scores.plain:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scores.scaling, enable_gqa=grouped
        )
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scaling = query.shape[3] ** -0.5 if scores.scaling is None else scores.scaling
    weights = (query @ key.transpose(2, 3)).float() * scaling
    if scores.softcap is not None:
        weights = torch.tanh(weights / scores.softcap) * scores.softcap
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    weights = weights + mask
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, -1, 1, 1).expand(*weights.shape[:3], 1)
        weights = torch.cat((weights, sinks), -1)
    return weights.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


def _attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scores: Scores,
    mask: Callable[[], torch.Tensor | None],
) -> torch.Tensor:
    """Attention, with gradients if they are recorded; `mask` makes that of the stock formula."""
    trained = (x for x in (query, key, value, scores.sinks) if x is not None)
    if torch.is_grad_enabled() and any(x.requires_grad for x in trained):
        out: torch.Tensor = _Differentiable.apply(
            query, key, value, scores.sinks, layout, scores, mask()
        )
        return out
    return attention(query, key, value, layout, scores)


@dataclass(frozen=True, slots=True)
class PaddedKeys:
    """Which keys the queries of a padded batch see."""

    starts: torch.Tensor | None = None
    """(batch,) keys of padding on the left; None if there are none."""
    firsts: torch.Tensor | None = None
    """(batch, q) first key that a query sees, counted from its row's start; None if all are seen.
    """
    origins: torch.Tensor | None = None
    """(batch,) position of the first key of each row; None if all are 0."""


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: PaddedKeys,
    scores: Scores,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of a padded batch, with gradients.

    `mask` is what the model passed, for the backward pass.
    """
    firsts = keys.firsts
    if firsts is not None:
        firsts = firsts if keys.origins is None else firsts + keys.origins[:, None]
        firsts = firsts.clamp(min=0).int()
    layout = Layout(
        query.shape[0], starts=keys.starts, max_k=key.shape[2], firsts=firsts, origins=keys.origins
    )
    return _attended(query, key, value, layout, scores, lambda: mask)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    kwargs: dict[str, Any],
    layer: int | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of requests packed along q, bounded by transformers' `cu_seq_lens_q` and `_k`.

    `layer` is the index of the layer in the model, if it has one: later layers of a step reuse
    the schedule of the first. `window` is the number of keys that a query sees; None: all. A
    cache keeps no more than those, so with a window `position_ids` in `kwargs` say where keys lie.
    Records gradients, as a trainer with several sequences in a row needs them.
    """
    cu_q, cu_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    longest = kwargs.get("max_length_k", kwargs.get("max_seqlen_k"))
    longest = longest if isinstance(longest, int) else None
    positions = None
    if window is not None:
        positions = kwargs.get("position_ids")
        if positions is not None:
            positions = positions[0] if positions.shape[-1] == query.shape[2] else None
        if longest is not None and longest <= window:
            window = None  # all keys that are left are seen
    layout = _layout(Lengths(cu_q, cu_k, longest, window), positions, layer)
    return _attended(
        query, key, value, layout, scores,
        lambda: _packed_mask(cu_q, cu_k, query.shape[2], key.shape[2], window),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """The parts of the layout of packed requests, besides the positions of their keys."""

    cu_q: torch.Tensor
    cu_k: torch.Tensor
    max_k: int | None
    window: int | None

    def is_that_of(self, layout: Layout) -> bool:
        """True if the layout was made of these very tensors."""
        return (
            layout.cu_q is self.cu_q
            and layout.cu_k is self.cu_k
            and layout.max_k == self.max_k
            and layout.window == self.window
        )


@dataclass(slots=True)
class _Step:
    """The layouts that the layers of a step used up to now, one for each kind of layer."""

    layer: int
    layouts: list[Layout]


_thread = threading.local()


def _layout(lengths: Lengths, positions: torch.Tensor | None, layer: int | None) -> Layout:
    """The layout of packed requests, shared by the layers of one step.

    A step's lengths may be written into the tensors of the step before, so equal tensors do not
    mean equal lengths. But a step goes through the layers in growing order: a layer that does not
    come after the last one begins a new step.
    """
    step: _Step | None = getattr(_thread, "step", None)
    if step is None or layer is None or layer <= step.layer:
        step = _Step(-1 if layer is None else layer, [])
        _thread.step = None if layer is None else step
    elif layer is not None:
        step.layer = layer
    for layout in step.layouts:
        if lengths.is_that_of(layout) and (layout.positions is None) == (positions is None):
            return layout
    made = Layout(
        min(len(lengths.cu_q), len(lengths.cu_k)) - 1, lengths.cu_q, lengths.cu_k,
        max_k=lengths.max_k, window=lengths.window, positions=positions,
    )  # fmt: skip
    step.layouts.append(made)
    return made


def _packed_mask(
    cu_q: torch.Tensor, cu_k: torch.Tensor, q_len: int, k_len: int, window: int | None = None
) -> torch.Tensor:
    """(q, k) of booleans: causal within each request, whose last query is its last key."""

    def places(bounds: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The request of each token, and how many tokens of that request come after it."""
        at = torch.arange(length, device=bounds.device)
        request = torch.bucketize(at, bounds[1:], right=True)
        ends = F.pad(bounds[1:], (0, 1), value=length)  # the rest belongs to no request
        return request, ends[request] - at

    (q_request, q_left), (k_request, k_left) = places(cu_q, q_len), places(cu_k, k_len)
    visible = (q_request[:, None] == k_request) & (q_left[:, None] <= k_left)
    return visible if window is None else visible & (k_left < q_left[:, None] + window)


def _causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(q, k) of booleans: the last query is the last key."""
    q_len, k_len = query.shape[2], key.shape[2]
    whole = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device)
    return whole.tril(k_len - q_len)
