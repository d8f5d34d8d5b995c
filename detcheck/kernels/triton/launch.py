"""What every launch of a Triton kernel here has in common."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

NUMERICS: dict[str, Any] = {"enable_fp_fusion": False}
"""Compile options of every kernel. Left to itself the compiler contracts `a * b + c` as it sees
fit, differently in two kernels that must agree (and the default changes between versions of
Triton). A fused multiply-add is written `tl.fma` where it is wanted."""


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one for a launch; nothing to do for the interpreter."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of Hopper for the interpreter, whose tiles are then tested."""
    return _capability(device.index) if device.type == "cuda" else (9, 0)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    return _processors(device.index) if device.type == "cuda" else 4


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)
