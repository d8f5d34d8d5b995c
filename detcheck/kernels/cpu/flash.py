"""PyTorch's fused attention on the CPU: one stock call per batch entry.

transformers' models do not come here directly. They go through its attention interface
(`attention.py`), or call a function of PyTorch's that is replaced (`any_mask.py`). An entry's
result does not depend on the rest of the batch. It does depend on its padding, which only those
take away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.attention import on_cache_lines
from detcheck.kernels.cpu.queries import FLASH_OP, calls_are_whole
from detcheck.kernels.cpu.stock import stock_kernel

_stock = stock_kernel(FLASH_OP)


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """aten's flash attention: (batch, heads, q, dim), and the log-sums (batch, heads, q)."""
    if not len(query) or calls_are_whole():
        whole: tuple[torch.Tensor, torch.Tensor] = _stock(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
        return whole
    each = [_own(x) for x in (query, key, value)]
    masks = _masks(attn_mask, len(query))
    found = [
        _stock(*entry, dropout_p, is_causal, attn_mask=mask, scale=scale)
        for *entry, mask in zip(*each, masks, strict=True)
    ]
    if len(found) == 1:
        out, sums = found[0]
        return out, sums
    outs, all_sums = zip(*found, strict=True)
    return torch.cat(outs), torch.cat(all_sums)


def _own(x: torch.Tensor) -> list[torch.Tensor]:
    """The entries of a batch (batch, heads, length, dim), each on cache lines."""
    return [on_cache_lines(entry) for entry in x.split(1)]


def _masks(mask: torch.Tensor | None, batch: int) -> list[torch.Tensor | None]:
    """One mask per entry, in memory of its own; a mask that all share is left as it is."""
    if mask is None or mask.dim() < 4 or len(mask) == 1:
        return [mask] * batch
    return [entry.clone() for entry in mask.split(1)]


KERNELS: dict[str, Callable[..., Any]] = {FLASH_OP: flash}
"""Overrides by aten op."""
