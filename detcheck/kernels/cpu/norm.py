"""Batch-invariant normalisation on the CPU.

RMSNorm, written out or called as `rms_norm`, consists of pow, mean (family `reduce`), rsqrt and
products. Layer normalisation gives each row to one thread already. So only rsqrt in half precision
needs a kernel: the stock vector kernel rounds once, the scalar one twice, and the number of rows
decides which of the two computes a row. In float32 both are correctly rounded.

Batch and group normalisation, and average pooling, need contiguous tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.pointwise import in_place, in_whole_vectors, into_out
from detcheck.kernels.cpu.stock import stock_kernel

_rsqrt = in_whole_vectors("rsqrt", frozenset((torch.bfloat16, torch.float16)))


def of_contiguous(op: str) -> Callable[..., Any]:
    """The op `op` (x, …) on a contiguous `x`: in another layout PyTorch takes other loops."""
    stock = stock_kernel(op)

    def normalise(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return stock(x.contiguous(), *args, **kwargs)

    return normalise


KERNELS: dict[str, Callable[..., Any]] = {
    "rsqrt": _rsqrt,
    "rsqrt_": in_place(_rsqrt),
    "rsqrt.out": into_out("rsqrt.out", _rsqrt),
    **{op: of_contiguous(op) for op in ("native_batch_norm", "native_group_norm")},
    **{op: of_contiguous(op) for op in ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")},
}
"""Overrides by aten op."""
