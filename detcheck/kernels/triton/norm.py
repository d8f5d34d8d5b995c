"""Batch-invariant RMSNorm in its fused form, and LayerNorm, on the GPU.

RMSNorm as models write it out (a mean of squares, a reciprocal square root) needs nothing here:
its mean is in the `reduce` family, and the rest works entry by entry.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.rows import FLOATS, RowCall, as_rows, first_call, kept_call


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


@triton.jit
def layer_norm_kernel(
    x, weight, bias, out, mean, rstd, length, stride,
    EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows, length) = (x - mean) * rstd * weight + bias; mean and rstd (rows,).

    One program a row. The mean comes first, then the squares of the deviations from it, each
    added into BLOCK running sums from the start of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    out += row * length
    sums = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        sums += tl.load(x + start + entries, mask=entries < length - start, other=0.0).to(ACC)
    middle = tl.sum(sums, axis=0) / length
    squares = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=0.0).to(ACC) - middle
        squares += tl.where(inside, part * part, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / length + EPS)
    tl.store(mean + row, middle)
    tl.store(rstd + row, scale)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=0.0).to(ACC)
        result = (part - middle) * scale
        if HAS_WEIGHT:
            result *= tl.load(weight + start + entries, mask=inside, other=0.0).to(ACC)
        if HAS_BIAS:
            result += tl.load(bias + start + entries, mask=inside, other=0.0).to(ACC)
        tl.store(out + start + entries, result.to(out.dtype.element_ty), mask=inside)


def fused_rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """aten::_fused_rms_norm over the last `len(normalized_shape)` dimensions.

    Returns the result, as `x`, and the reciprocal root mean squares (…, 1, …) in float32 (float64
    for float64), which the stock backward takes. `eps` None means the smallest step of the dtype
    that it computes in. Raises NotImplementedError for other dtypes.
    """
    if x.dtype not in FLOATS:
        raise NotImplementedError(f"RMSNorm of {x.dtype} has no batch-invariant kernel")
    dtype = None if weight is None else weight.dtype
    kind = ("rms", len(normalized_shape), dtype, eps, x.shape, x.stride(), x.dtype, x.get_device())
    weight = None if weight is None else weight.contiguous()
    kept = kept_call(kind)
    if kept is not None:
        out, rstd = kept(x, x if weight is None else weight)
        return out, rstd
    wide, statistics = _statistics(x, normalized_shape)
    if x.numel() == 0:
        return x.new_empty(x.shape), x.new_empty(statistics, dtype=wide)
    rows = as_rows(x, range(x.dim() - len(normalized_shape), x.dim()))
    named = {
        "EPS": float(torch.finfo(wide).eps if eps is None else eps),
        "HAS_WEIGHT": weight is not None,
    }
    outputs = ((x.shape, x.dtype), (statistics, wide))
    call = RowCall.over(rms_norm_kernel, rows, outputs, named, wide=wide == torch.float64)
    out, rstd = first_call(kind, call, x, rows, x if weight is None else weight)
    return out, rstd


def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """aten::native_layer_norm over the last `len(normalized_shape)` dimensions.

    Returns the result, as `x`, and means and reciprocal standard deviations (…, 1, …) in float32
    (float64 for float64), which the stock backward takes. Raises NotImplementedError for other
    dtypes.
    """
    if x.dtype not in FLOATS:
        raise NotImplementedError(f"LayerNorm of {x.dtype} has no batch-invariant kernel")
    kind = (
        "layer", len(normalized_shape), weight is None or weight.dtype,
        bias is None or bias.dtype, eps, x.shape, x.stride(), x.dtype, x.get_device(),
    )  # fmt: skip
    kept = kept_call(kind)
    weight_of = x if weight is None else weight.contiguous()
    bias_of = x if bias is None else bias.contiguous()
    if kept is not None:
        out, mean, rstd = kept(x, weight_of, bias_of)
        return out, mean, rstd
    wide, statistics = _statistics(x, normalized_shape)
    if x.numel() == 0:
        empty = x.new_empty(statistics, dtype=wide)
        return x.new_empty(x.shape), empty, empty.clone()
    rows = as_rows(x, range(x.dim() - len(normalized_shape), x.dim()))
    named = {"EPS": eps, "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    outputs = ((x.shape, x.dtype), (statistics, wide), (statistics, wide))
    call = RowCall.over(layer_norm_kernel, rows, outputs, named, wide=wide == torch.float64)
    out, mean, rstd = first_call(kind, call, x, rows, weight_of, bias_of)
    return out, mean, rstd


def _statistics(
    x: torch.Tensor, normalized_shape: Sequence[int]
) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of what a norm keeps of each row for the backward pass."""
    kept = x.shape[: x.dim() - len(normalized_shape)]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return wide, (*kept, *(1 for _ in normalized_shape))
