"""RMSNorm: the stock kernels that its ops end in, called directly."""

from __future__ import annotations

from typing import Any

import torch

from detcheck.kernels.cpu.reduce import SPLIT_ELEMENTS
from detcheck.kernels.cpu.stock import stock_kernel
from detcheck.kernels.fused.unit import Calls, Forward, counter, is_plain

_mean = stock_kernel("mean.dim")
_rsqrt = stock_kernel("rsqrt")


class FusedNorm:
    """The fused form of one class."""

    def __init__(self, own: Any, calls: Calls):
        """`own` is the forward of the class; fused calls are counted in `calls`."""
        self._own = own
        self._count = counter({"reduce": {"aten::mean.dim": 1}, "norm": {"aten::rsqrt": 1}}, calls)

    def forward(self) -> Forward:
        """The forward to put in place of the class's own."""

        def forward(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            x = hidden_states
            if is_plain(x) and fits(x):
                return self.compute(module, x)
            computed: torch.Tensor = self._own(module, x)
            return computed

        return forward

    def compute(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """The norm of a plain `x` (…, hidden) that fits."""
        self._count()
        wide = x.float()
        scale = _rsqrt(_mean(wide * wide, [-1], True).add_(module.variance_epsilon))
        normed: torch.Tensor = module.weight * (wide * scale).to(x.dtype)
        return normed


def fits(x: torch.Tensor) -> bool:
    """False for an empty `x`, and for a single row so long that its mean is split over threads."""
    size = x.numel()
    return size > 0 and x.dim() > 0 and (size < SPLIT_ELEMENTS or size > x.shape[-1])
