"""RMSNorm: the stock kernels that its ops end in, called directly."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from detcheck.kernels.cpu.reduce import SPLIT_ELEMENTS
from detcheck.kernels.cpu.stock import stock_kernel
from detcheck.kernels.fused.calls import Calls, Forward, Ops, counter, forms_on_gpu, is_plain

_sum = stock_kernel("sum.dim_IntList")
_rsqrt = stock_kernel("rsqrt")
_LAST = (-1,)


class FusedNorm:
    """The fused form of one class."""

    ops: ClassVar[Ops] = {"reduce": {"aten::mean.dim": 1}, "norm": {"aten::rsqrt": 1}}
    """The overrides that a call stands for."""

    def __init__(self, own: Any, calls: Calls):
        """`own` is the forward of the class; fused calls are counted in `calls`."""
        self.own = own
        """transformers' forward of the class."""
        self.in_place: Forward = own
        """The forward that the class has now."""
        self._count = counter(calls, self.ops)
        gpu = forms_on_gpu()
        self._on_gpu = None if gpu is None else gpu.NormOnGpu(own, calls)

    def forward(self) -> Forward:
        """The forward to put in place of the class's own."""

        def forward(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            x = hidden_states
            if is_plain(x) and fits(x) and type(module.variance_epsilon) is float:
                self._count()
                return normed(x, module.weight, float32(x.shape[-1], module.variance_epsilon))
            if self._on_gpu is not None:
                found: torch.Tensor | None = self._on_gpu(module, x)
                if found is not None:
                    return found
            computed: torch.Tensor = self.own(module, x)
            return computed

        return forward


def normed(
    x: torch.Tensor, weight: torch.Tensor, constants: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """The norm of a plain `x` (…, hidden) that fits; `constants` are the hidden size and epsilon.

    As PyTorch's mean does it, a sum is divided.
    """
    size, epsilon = constants
    wide = x.float()
    scale = _rsqrt(_sum(wide * wide, _LAST, True).div_(size).add_(epsilon))
    result: torch.Tensor = weight * (wide * scale).to(x.dtype)
    return result


@lru_cache(maxsize=64)
def float32(*numbers: float) -> tuple[torch.Tensor, ...]:
    """Numbers as tensors: for those PyTorch needs fewer steps."""
    with torch.inference_mode(False), _disable_current_modes(), torch.device("cpu"):
        return tuple(torch.tensor(number, dtype=torch.float32) for number in numbers)


def fits(x: torch.Tensor) -> bool:
    """False for an empty `x`, and for a single row so long that its mean is split over threads."""
    size = x.numel()
    return size > 0 and x.dim() > 0 and (size < SPLIT_ELEMENTS or size > x.shape[-1])
