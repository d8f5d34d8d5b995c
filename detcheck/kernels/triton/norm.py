"""Batch-invariant RMSNorm in its fused form on the GPU.

The written-out form (a mean of squares, a reciprocal square root) needs nothing here: its mean is
in the `reduce` family, and the rest works entry by entry.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.launch import on_device
from detcheck.kernels.triton.rows import FLOATS, OPTIONS, as_rows, block_size


@triton.jit
def rms_norm_kernel(
    x, weight, out, rstd, length, stride,
    EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows, length) = x * rstd * weight, rstd (rows,) = 1 / sqrt(mean(x²) + eps).

    One program a row; squares are added into BLOCK running sums from the start of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    out += row * length
    squares = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        part = tl.load(x + start + entries, mask=entries < length - start, other=0.0).to(ACC)
        squares += part * part
    mean = tl.sum(squares, axis=0) / length
    scale = 1.0 / tl.sqrt(mean + EPS)
    tl.store(rstd + row, scale)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        result = tl.load(x + start + entries, mask=inside, other=0.0).to(ACC) * scale
        if HAS_WEIGHT:
            result *= tl.load(weight + start + entries, mask=inside, other=0.0).to(ACC)
        tl.store(out + start + entries, result.to(out.dtype.element_ty), mask=inside)


def fused_rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """aten::_fused_rms_norm over the last `len(normalized_shape)` dimensions.

    Returns the result, as `x`, and the reciprocal root mean squares (…, 1, …) in float32 (float64
    for float64), which the stock backward takes. `eps` None is the smallest step of the dtype that
    is computed in. Raises NotImplementedError for other dtypes.
    """
    if x.dtype not in FLOATS:
        raise NotImplementedError(f"RMSNorm of {x.dtype} has no batch-invariant kernel")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    first = x.dim() - len(normalized_shape)
    out = x.new_empty(x.shape)
    rstd = x.new_empty((*x.shape[:first], *(1 for _ in normalized_shape)), dtype=wide)
    if x.numel() == 0:
        return out, rstd
    rows = as_rows(x, range(first, x.dim()))
    with on_device(x):
        rms_norm_kernel[(rows.shape[0],)](
            rows, out if weight is None else weight.contiguous(), out, rstd,
            rows.shape[1], rows.stride(0),
            EPS=float(torch.finfo(wide).eps if eps is None else eps),
            HAS_WEIGHT=weight is not None,
            ACC=tl.float64 if wide == torch.float64 else tl.float32,
            BLOCK=block_size(rows.shape[1]), **OPTIONS,
        )  # fmt: skip
    return out, rstd
