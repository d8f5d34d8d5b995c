"""Batch-invariant softmax and log-softmax over one dimension of any length, on the GPU.

As on the CPU, softmax over the last of three and more dims is attention's, and sums in order, so
that masked keys do not change it.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton import in_order
from detcheck.kernels.triton.rows import FLOATS, RowCall, as_rows, first_call, kept_call


@triton.jit
def softmax_kernel(
    x, out, length, stride, LOG: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """out (rows, length) = softmax or log-softmax of x's rows; one program a row.

    Three passes: the largest entry (its order of search changes nothing), the sum of exponentials
    in BLOCK running sums from the start of the row, the results.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    out += row * length
    largest = tl.full((BLOCK,), -float("inf"), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=-float("inf")).to(ACC)
        largest = tl.maximum(largest, part, propagate_nan=tl.PropagateNan.ALL)
    top = tl.max(largest, axis=0)
    sums = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=-float("inf")).to(ACC)
        sums += tl.where(inside, tl.exp(part - top), 0.0)
    total = tl.sum(sums, axis=0)
    log_total = tl.log(total)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=0.0).to(ACC)
        result = part - top - log_total if LOG else tl.exp(part - top) / total
        tl.store(out + start + entries, result.to(out.dtype.element_ty), mask=inside)


def softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    """aten::_softmax in float32 (float64 for float64); `half_to_float` widens the result."""
    return _softmax(x, dim, half_to_float, log=False)


def log_softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    """aten::_log_softmax in float32 (float64 for float64); `half_to_float` widens the result."""
    return _softmax(x, dim, half_to_float, log=True)


def _softmax(x: torch.Tensor, dim: int, half_to_float: bool, *, log: bool) -> torch.Tensor:
    dtype = torch.float32 if half_to_float else x.dtype
    if x.dtype not in FLOATS:
        stock = torch.ops.aten._log_softmax if log else torch.ops.aten._softmax
        return stock.out(x, dim, half_to_float, out=x.new_empty(x.shape, dtype=dtype))
    if x.numel() == 0 or x.dim() == 0:
        return x.new_full(x.shape, 0.0 if log else 1.0, dtype=dtype)
    dim %= x.dim()
    if x.dim() >= 3 and dim == x.dim() - 1 and not log:  # weights of attention, over keys
        return in_order.softmax(x, dtype)
    kind = ("softmax", log, dim, half_to_float, x.shape, x.stride(), x.dtype, x.get_device())
    sizes = [*(size for index, size in enumerate(x.shape) if index != dim), x.shape[dim]]
    kept = kept_call(kind)
    if kept is not None:
        out = kept.only(x)
    else:
        rows = as_rows(x, [dim])
        wide = x.dtype == torch.float64
        call = RowCall.over(softmax_kernel, rows, ((sizes, dtype),), {"LOG": log}, wide=wide)
        out = first_call(kind, call, x, rows)[0]
    return out if dim == x.dim() - 1 else out.movedim(-1, dim).contiguous()
