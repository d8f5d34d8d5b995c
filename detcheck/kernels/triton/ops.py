"""Which aten ops have a Triton kernel, by op family: what `overrides` registers for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detcheck.kernels.triton import matmul, norm, reduce, softmax

KERNELS: dict[str, dict[str, Callable[..., Any]]] = {
    "matmul": {
        "mm": matmul.mm,
        "addmm": matmul.addmm,
        "bmm": matmul.bmm,
        "baddbmm": matmul.baddbmm,
    },
    "norm": {"_fused_rms_norm": norm.fused_rms_norm},
    "softmax": {"_softmax": softmax.softmax, "_log_softmax": softmax.log_softmax},
    "reduce": {"mean.dim": reduce.mean_dims, "sum.dim_IntList": reduce.sum_dims},
}
"""Family, then aten op. Ops that work entry by entry need none: on a GPU one thread computes one
entry, by the same instructions wherever it lies."""
