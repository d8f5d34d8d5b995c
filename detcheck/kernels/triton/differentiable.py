"""Attention as transformers calls it, padded or packed, with gradients if they are recorded."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

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
        layout: Layout,
        scaling: float | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = scaling
        return attention(query, key, value, layout, scaling)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, mask = ctx.saved_tensors
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in inputs)
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=_causal(query, key) if mask is None else mask,
                scale=ctx.scaling, enable_gqa=query.shape[1] != key.shape[1],
            )  # fmt: skip
            grads = torch.autograd.grad(out, (query, key, value), grad.transpose(1, 2))
        return *grads, None, None, None


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor | None,
    scaling: float | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of a batch padded on the left by `starts` (batch,) keys, with gradients.

    `mask` is what the model passed, for the backward pass.
    """
    layout = Layout(query.shape[0], starts=starts, max_k=key.shape[2])
    if _needs_gradients(query, key, value):
        out: torch.Tensor = _Differentiable.apply(query, key, value, layout, scaling, mask)
        return out
    return attention(query, key, value, layout, scaling)


def _needs_gradients(*inputs: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    kwargs: dict[str, Any],
    layer: int | None = None,
) -> torch.Tensor:
    """Attention of requests packed along q, bounded by transformers' `cu_seq_lens_q` and `_k`.

    `layer` is the index of the layer in the model, if it has one: later layers of a step reuse
    the schedule of the first. Records gradients, as a trainer with several sequences in a row
    needs them.
    """
    cu_q, cu_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    longest = kwargs.get("max_length_k", kwargs.get("max_seqlen_k"))
    layout = _layout(cu_q, cu_k, longest if isinstance(longest, int) else None, layer)
    if _needs_gradients(query, key, value):
        mask = _packed_mask(cu_q, cu_k, query.shape[2], key.shape[2])
        out: torch.Tensor = _Differentiable.apply(query, key, value, layout, scaling, mask)
        return out
    return attention(query, key, value, layout, scaling)


@dataclass(slots=True)
class _Step:
    """The layout that the last layer used, and for which lengths."""

    layer: int
    cu_q: torch.Tensor
    cu_k: torch.Tensor
    layout: Layout


_thread = threading.local()


def _layout(cu_q: torch.Tensor, cu_k: torch.Tensor, max_k: int | None, layer: int | None) -> Layout:
    """The layout of packed requests, shared by the layers of one step.

    A step's lengths may be written into the tensors of the step before, so equal tensors do not
    mean equal lengths. But a step goes through the layers in growing order: a layer that does not
    come after the last one begins a new step.
    """
    last: _Step | None = getattr(_thread, "step", None)
    if (
        last is not None
        and layer is not None
        and layer > last.layer
        and last.cu_q is cu_q
        and last.cu_k is cu_k
        and last.layout.max_k == max_k
    ):
        last.layer = layer
        return last.layout
    layout = Layout(min(len(cu_q), len(cu_k)) - 1, cu_q, cu_k, max_k=max_k)
    _thread.step = None if layer is None else _Step(layer, cu_q, cu_k, layout)
    return layout


def _packed_mask(cu_q: torch.Tensor, cu_k: torch.Tensor, q_len: int, k_len: int) -> torch.Tensor:
    """(q, k) of booleans: causal within each request, whose last query is its last key."""

    def places(bounds: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The request of each token, and how many tokens of that request come after it."""
        at = torch.arange(length, device=bounds.device)
        request = torch.bucketize(at, bounds[1:], right=True)
        ends = F.pad(bounds[1:], (0, 1), value=length)  # the rest belongs to no request
        return request, ends[request] - at

    (q_request, q_left), (k_request, k_left) = places(cu_q, q_len), places(cu_k, k_len)
    return (q_request[:, None] == k_request) & (q_left[:, None] <= k_left)


def _causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(q, k) of booleans: the last query is the last key."""
    q_len, k_len = query.shape[2], key.shape[2]
    whole = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device)
    return whole.tril(k_len - q_len)
