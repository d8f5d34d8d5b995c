"""RMSNorm as transformers writes it, and SiLU times a tensor, each in one launch.

Both have the bits of the kernels that PyTorch launches for them one after another, and of our mean.
That is not assumed: `fused/proofs.py` compares them on the GPU before they serve.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from detcheck.kernels.triton.rows import RowCall

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
SILU_BLOCK = 1024
MULTIPLE = 16
"""Lengths that `weighted_norm` serves are multiples of this."""


@triton.jit
def _in_fours(BLOCK: tl.constexpr):
    """0 to BLOCK, written so that Triton sees runs of 4: so many float32 a thread loads at once."""
    entries = tl.arange(0, BLOCK)
    return entries // 4 * 4 + entries % 4


@triton.jit
def _scale(squares, length, EPS: tl.constexpr):
    """The factor of a row, of running sums of its squares; added and divided as the mean is."""
    mean = tl.sum(squares, axis=0)
    mean /= length
    return tl.rsqrt(mean + EPS)


@triton.jit
def _store_weighted(out, part, weight, at, inside, ACC: tl.constexpr):
    """out = weight * part at some places, rounded before the product and after it."""
    rounded = part.to(out.dtype.element_ty).to(ACC)
    part = tl.load(weight + at, mask=inside, other=0.0).to(ACC) * rounded
    tl.store(out + at, part.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weighted_norm_kernel(
    x, weight, out, length, stride,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows, length) = weight * (x / sqrt(mean(x²) + eps)), rounded as PyTorch rounds it.

    One program a row. Squares are added as `row_sum_kernel` adds a float32 tensor of squares: in
    the same blocks, and by the same threads, since which thread holds an entry decides the order.
    So a thread loads runs of 4 entries, as of float32; of 16-bit entries Triton would take 8. Only
    for lengths that are multiples of 16 does it choose them alike in both kernels.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = _in_fours(BLOCK)
    x += row * stride
    out += row * length
    total = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        part = tl.load(x + start + entries, mask=entries < length - start, other=0.0).to(ACC)
        total += part * part
    scale = _scale(total, length, EPS)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=0.0).to(ACC) * scale
        _store_weighted(out, part, weight, start + entries, inside, ACC)


@triton.jit
def _summed(x, y, at, inside, out, ACC: tl.constexpr):
    """x + y at some places, rounded to the dtype of `out`."""
    part = tl.load(x + at, mask=inside, other=0.0).to(ACC)
    return (part + tl.load(y + at, mask=inside, other=0.0).to(ACC)).to(out.dtype.element_ty)


@triton.jit
def summed_norm_kernel(
    x, y, weight, summed, out, length, stride,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """summed (rows, length) = x + y, and out its norm, in the order of `weighted_norm_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    entries = _in_fours(BLOCK)
    x += row * stride
    y += row * stride
    summed += row * stride
    out += row * stride
    total = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = _summed(x, y, start + entries, inside, out, ACC)
        tl.store(summed + start + entries, part, mask=inside)
        part = part.to(ACC)
        total += part * part
    scale = _scale(total, length, EPS)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = _summed(x, y, start + entries, inside, out, ACC).to(ACC) * scale
        _store_weighted(out, part, weight, start + entries, inside, ACC)


@triton.jit
def silu_times_kernel(
    gate, up, out, count, LIBDEVICE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """out (count,) = silu(gate) * up, each rounded. Grid: (count / BLOCK,)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x = tl.load(gate + index, mask=inside, other=0.0).to(ACC)
    power = libdevice.exp(-x) if LIBDEVICE else tl.exp(-x)
    silu = tl.div_rn(x, 1.0 + power).to(out.dtype.element_ty).to(ACC)
    result = silu * tl.load(up + index, mask=inside, other=0.0).to(ACC)
    tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


INTERPRETED = not isinstance(silu_times_kernel, triton.JITFunction)
"""True in Triton's interpreter, which has no libdevice: there `tl.exp` is NumPy's function."""


def weighted_norm(x: torch.Tensor, epsilon: float) -> RowCall:
    """The call for contiguous tensors (…, length) of the shape of `x`, and their weights (length,).

    It gives one output of that shape. All addresses must be multiples of 16 bytes: for others
    Triton compiles a kernel whose threads may hold other entries.
    """
    rows = x.view(-1, x.shape[-1])
    output = (x.shape, x.dtype)
    return RowCall.over(weighted_norm_kernel, rows, (output,), {"EPS": epsilon})


def summed_norm(x: torch.Tensor, epsilon: float) -> RowCall:
    """As `weighted_norm`, for two tensors and a weight: their sum, and the norm of it."""
    rows = x.view(-1, x.shape[-1])
    output = (x.shape, x.dtype)
    return RowCall.over(summed_norm_kernel, rows, (output, output), {"EPS": epsilon})


def silu_times(gate: torch.Tensor) -> RowCall:
    """The call for a gate and a factor, both contiguous and of the shape of `gate`; one output."""
    count = gate.numel()
    named: dict[str, Any] = {"LIBDEVICE": not INTERPRETED, "BLOCK": SILU_BLOCK}
    blocks = triton.cdiv(count, SILU_BLOCK)
    output = (gate.shape, gate.dtype)
    return RowCall(silu_times_kernel, gate, blocks, (output,), (count,), named, wide=False)
