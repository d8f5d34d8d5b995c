"""Batch-invariant sums, means, products, norms, log-sum-exp and running sums on the GPU."""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.rows import (
    FLOATS,
    Output,
    RowCall,
    as_rows,
    first_call,
    kept_call,
    normalized_dims,
    reduced_shape,
)

Dims = Sequence[int] | int | None
SHORT = 32
"""Longest row that is added up one by one, by programs that compute many results each. So the
experts of a token are, wherever they lie. It is a matter of the length alone: a batch of one must
not take another order because its row happens to be contiguous."""
SHORT_BLOCK = 512


@triton.jit
def row_sum_kernel(
    x, out, length, stride,
    MEAN: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows,) = sums, or means, of x's rows (rows, length); one program a row.

    With POWER 1 or 2 it is the norm of that order: of absolute values, or the root of the squares.
    Blocks are added into BLOCK running sums from the start of the row, then those into one.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=ACC)
    x += row * stride
    for start in range(0, length, BLOCK):
        part = tl.load(x + start + entries, mask=entries < length - start, other=0.0).to(ACC)
        if POWER == 1:
            part = tl.abs(part)
        elif POWER == 2:
            part = part * part
        acc += part
    total = tl.sum(acc, axis=0)
    if MEAN:
        total /= length
    elif POWER == 2:
        total = tl.sqrt(total)
    tl.store(out + row, total.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["count"])
def short_sum_kernel(
    x, out, count, length, inner, stride_outer, stride_length, stride_inner,
    MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (count,) = sums, or means, over the middle of x (outer, length, inner), one by one.

    A program computes BLOCK results. Grid: (count / BLOCK,).
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x += index // inner * stride_outer + index % inner * stride_inner
    total = tl.zeros((BLOCK,), dtype=ACC)
    for _ in range(length):
        total += tl.load(x, mask=inside, other=0.0).to(ACC)
        x += stride_length
    if MEAN:
        total /= length
    tl.store(out + index, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def row_product_kernel(x, out, length, stride, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """out (rows,) = products of x's rows (rows, length), in the order of `row_sum_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    acc = tl.full((BLOCK,), 1.0, dtype=ACC)
    x += row * stride
    for start in range(0, length, BLOCK):
        acc *= tl.load(x + start + entries, mask=entries < length - start, other=1.0).to(ACC)
    tl.store(out + row, tl.reduce(acc, 0, _times).to(out.dtype.element_ty))


@triton.jit
def row_logsumexp_kernel(x, out, length, stride, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """out (rows,) = log of the sum of exponentials of x's rows (rows, length).

    The largest entry is subtracted first, unless it is infinite. One program a row; exponentials
    are added into BLOCK running sums from the start of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    largest = tl.full((BLOCK,), -float("inf"), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=-float("inf")).to(ACC)
        largest = tl.maximum(largest, part)
    top = tl.max(largest, axis=0)
    top = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    sums = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=-float("inf")).to(ACC)
        sums += tl.where(inside, tl.exp(part - top), 0.0)
    result = tl.log(tl.sum(sums, axis=0)) + top
    tl.store(out + row, result.to(out.dtype.element_ty))


@triton.jit
def row_cumsum_kernel(x, out, length, stride, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """out (rows, length) = running sums of x's rows; one program a row.

    The sum of the blocks before a block is added to the running sums within it.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    out += row * length
    before = tl.full((), 0.0, dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=0.0).to(ACC)
        sums = before + tl.cumsum(part, axis=0)
        tl.store(out + start + entries, sums.to(out.dtype.element_ty), mask=inside)
        before += tl.sum(part, axis=0)


def sum_dims(
    x: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::sum.dim_IntList, accumulated in float32 (float64 for float64).

    Integers, booleans and complex numbers run as stock.
    """
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        dims = normalized_dims(x, dim)
        exact = x.dtype if x.dtype.is_complex or x.dtype.is_floating_point else torch.int64
        out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or exact)
        return torch.sum(x, dims, keepdim, dtype=dtype, out=out)
    return _reduced(row_sum_kernel, x, dim, keepdim, dtype, 0.0, MEAN=False, POWER=0)


def nansum(
    x: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::nansum, accumulated as `sum_dims` does."""
    if not x.dtype.is_floating_point:
        return sum_dims(x, dim, keepdim, dtype=dtype)
    return sum_dims(torch.where(x.isnan(), 0.0, x), dim, keepdim, dtype=dtype)


def mean_dims(
    x: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::mean.dim, accumulated in float32 (float64 for float64) and divided before rounding."""
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        dims = normalized_dims(x, dim)
        out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or x.dtype)
        return torch.mean(x, dims, keepdim, dtype=dtype, out=out)
    return _reduced(row_sum_kernel, x, dim, keepdim, dtype, float("nan"), MEAN=True, POWER=0)


def prod_dim(
    x: torch.Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::prod.dim_int, multiplied in float32 (float64 for float64); other dtypes as stock."""
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        exact = x.dtype if x.dtype.is_complex or x.dtype.is_floating_point else torch.int64
        shape = reduced_shape(x, normalized_dims(x, dim), keepdim)
        return torch.prod(
            x, dim, keepdim, dtype=dtype, out=x.new_empty(shape, dtype=dtype or exact)
        )
    return _reduced(row_product_kernel, x, dim, keepdim, dtype, 1.0)


def logsumexp(x: torch.Tensor, dim: Dims, keepdim: bool = False) -> torch.Tensor:
    """aten::logsumexp in float32 (float64 for float64); integers are taken as PyTorch's default.

    Complex numbers run as stock.
    """
    if x.dtype.is_complex:
        dims = normalized_dims(x, dim)
        return torch.logsumexp(x, dims, keepdim, out=x.new_empty(reduced_shape(x, dims, keepdim)))
    x = x if x.dtype in FLOATS else x.to(torch.get_default_dtype())
    return _reduced(row_logsumexp_kernel, x, dim, keepdim, None, -inf)


def cumsum(x: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """aten::cumsum in float32 (float64 for float64); other dtypes as stock."""
    kept_dtype = dtype or x.dtype
    if x.dtype not in FLOATS or kept_dtype not in FLOATS or x.numel() == 0 or x.dim() == 0:
        exact = x.dtype if x.dtype.is_complex or x.dtype.is_floating_point else torch.int64
        out = x.new_empty(x.shape, dtype=dtype or exact)
        return torch.cumsum(x, dim, dtype=dtype, out=out)
    dim %= x.dim()
    kind = ("cumsum", dim, dtype, x.shape, x.stride(), x.dtype, x.get_device())
    kept = kept_call(kind)
    if kept is not None:
        out = kept.only(x)
    else:
        rows = as_rows(x, [dim])
        shape = [*(size for index, size in enumerate(x.shape) if index != dim), x.shape[dim]]
        wide = torch.float64 in (x.dtype, kept_dtype)
        call = RowCall.over(row_cumsum_kernel, rows, ((shape, kept_dtype),), {}, wide=wide)
        out = first_call(kind, call, x, rows)[0]
    return out.movedim(-1, dim)


def vector_norm(
    x: torch.Tensor,
    order: float = 2,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::linalg_vector_norm of any order, in float32 (float64 for float64).

    Complex numbers, and orders of infinity, whose result no order of comparison changes, run as
    stock.
    """
    exact = abs(order) == inf or x.numel() == 0
    if exact or x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        shape = reduced_shape(x, normalized_dims(x, dim), keepdim)
        out = x.new_empty(shape, dtype=dtype or (x.abs() if x.is_complex() else x).dtype)
        return torch.linalg.vector_norm(x, order, dim, keepdim, dtype=dtype, out=out)
    if order in (1, 2):
        power = int(order)
        return _reduced(row_sum_kernel, x, dim, keepdim, dtype, 0.0, MEAN=False, POWER=power)
    wide = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    terms = (x != 0).to(wide) if order == 0 else x.to(wide).abs().pow(order)
    total = sum_dims(terms, dim, keepdim)
    return (total if order == 0 else total.pow(1 / order)).to(dtype or x.dtype)


def _reduced(
    kernel: Any,
    x: torch.Tensor,
    dim: Dims,
    keepdim: bool,
    dtype: torch.dtype | None,
    of_nothing: float,
    **named: Any,
) -> torch.Tensor:
    """`x` reduced over `dim` by `kernel`; `of_nothing` is the result for a row of no entries."""
    over = dim if dim is None or isinstance(dim, int) else tuple(dim)
    kind = (kernel, *named.values(), over, keepdim, dtype,
            x.shape, x.stride(), x.dtype, x.get_device())  # fmt: skip
    kept = kept_call(kind)
    if kept is not None:
        return kept.only(x)
    dims = normalized_dims(x, dim)
    shape, dtype = reduced_shape(x, dims, keepdim), dtype or x.dtype
    if x.numel() == 0:
        return x.new_full(shape, of_nothing, dtype=dtype)
    wide = torch.float64 in (x.dtype, dtype)
    if kernel is row_sum_kernel and not named["POWER"] and _size(x, dims) <= SHORT:
        y = _with_middle(x, dims)
        call = _short_call(y, (shape, dtype), mean=named["MEAN"], wide=wide)
        return first_call(kind, call, x, y)[0]
    rows = as_rows(x, dims)
    call = RowCall.over(kernel, rows, ((shape, dtype),), named, wide=wide)
    return first_call(kind, call, x, rows)[0]


def _short_call(y: torch.Tensor, output: Output, *, mean: bool, wide: bool) -> RowCall:
    """The call that sums over the middle of tensors like `y` (outer, length, inner)."""
    outer, length, inner = y.shape
    count, constant = outer * inner, (length, inner, *y.stride())
    named = {"MEAN": mean, "BLOCK": SHORT_BLOCK}
    blocks = triton.cdiv(count, SHORT_BLOCK)
    return RowCall(
        short_sum_kernel, y, blocks, (output,), constant, named, wide=wide, numbers=(count,)
    )


def _with_middle(x: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """`x` as (outer, length, inner), `dims` in the middle; a view if the layout allows it."""
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        return as_rows(x, dims)[..., None]
    return x.reshape(prod(x.shape[: dims[0]]), _size(x, dims), prod(x.shape[dims[-1] + 1 :]))


def _size(x: torch.Tensor, dims: list[int]) -> int:
    return prod(x.shape[dim] for dim in dims)
