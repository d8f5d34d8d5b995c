"""Experts on the GPU: transformers' grouped implementation, with grouped products of ours.

The loop over experts, which serves the CPU, asks the device which experts have tokens, so it waits
for the GPU once a layer and cannot be captured in a CUDA graph. It also adds a token's experts by
atomic additions. The grouped implementation does neither: it sorts tokens by expert, multiplies
them in one launch a matrix, and adds a token's experts in one order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.triton.matmul import FLOATS


def grouped_implementation(hidden_states: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """transformers' grouped implementation, if it serves these tokens; else None.

    While `matmul` and `reduce` are held its products and sums are ours.
    """
    if not hidden_states.is_cuda or hidden_states.dtype not in FLOATS:
        return None
    try:
        from transformers.integrations import moe
    except ImportError:
        return None
    found: Any = getattr(moe, "grouped_mm_experts_forward", None)
    return found
