"""Which aten ops have a Triton kernel, by op family: what `overrides` registers for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detcheck.kernels.triton import grouped, matmul, norm, reduce, softmax, topk

KERNELS: dict[str, dict[str, Callable[..., Any]]] = {
    "matmul": {
        "mm": matmul.mm,
        "addmm": matmul.addmm,
        "bmm": matmul.bmm,
        "baddbmm": matmul.baddbmm,
        "_grouped_mm": grouped.grouped_mm,
    },
    "norm": {"_fused_rms_norm": norm.fused_rms_norm, "native_layer_norm": norm.layer_norm},
    "softmax": {"_softmax": softmax.softmax, "_log_softmax": softmax.log_softmax},
    "reduce": {
        "mean.dim": reduce.mean_dims,
        "sum.dim_IntList": reduce.sum_dims,
        "prod.dim_int": reduce.prod_dim,
        "logsumexp": reduce.logsumexp,
        "linalg_vector_norm": reduce.vector_norm,
        "nansum": reduce.nansum,
        "cumsum": reduce.cumsum,
        "topk": topk.topk,
    },
}
"""Family, then aten op. Ops that work entry by entry need no kernel here: on a GPU one thread
computes one entry, by the same instructions at every place."""
