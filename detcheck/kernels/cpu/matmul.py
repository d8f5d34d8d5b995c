"""Batch-invariant mm, addmm and bmm on the CPU: stock kernels, kept within one row class."""

from __future__ import annotations

from typing import Any

import torch

from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.rows import CACHE_LINE_BYTES, ClassTable, ProductShape, RowClasses

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_settled: set[tuple[Any, ...]] = set()
"""Calls whose operands run as they are, by all that this may depend on: the common case, fast."""

_stock_mm = torch.mm


def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) to (M, N); every row is bitwise what it is in a call of 32 rows.

    float32, bfloat16, float16 and float64; other dtypes (integers) run as stock, being exact.
    """
    if is_settled(left, right):
        return _stock_mm(left, right, out=left.new_empty((left.shape[0], right.shape[1])))
    if left.dtype not in _FLOATS or left.shape[1] <= 1 or _empty(left, right):
        return _stock_mm(left, right, out=left.new_empty((left.shape[0], right.shape[1])))
    return _by_rows(left, right, None)


def addmm(
    bias: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    """beta * bias + alpha * (M, K) x (K, N) to (M, N), row for row independent of M."""
    plain = left.dtype in _FLOATS and not _empty(left, right)
    if plain and bias.dim() == 1 and beta == 1 and alpha == 1:
        return _by_rows(left, right, bias)
    product = mm(left, right) * alpha
    return product + bias * beta if beta else product


def bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N): each product on its own, so B and M do not matter."""
    if left.dtype not in _FLOATS or left.shape[2] <= 1 or len(left) != len(right) or not len(left):
        shape = (left.shape[0], left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=left.new_empty(shape))
    return torch.stack([mm(one, other) for one, other in zip(left, right, strict=True)])


def _empty(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether a product has no entries, or only sums of nothing."""
    return not left.numel() or not right.numel()


def is_settled(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether such a call was found to need neither copies nor padding."""
    return (
        _call_key(left, right) in _settled
        and left.is_contiguous()
        and not left.data_ptr() % CACHE_LINE_BYTES
    )


def _call_key(left: torch.Tensor, right: torch.Tensor) -> tuple[Any, ...]:
    return (
        left.shape[0],
        right.shape,
        right.stride(),
        left.dtype,
        right.data_ptr() % CACHE_LINE_BYTES,
        numerics(),
    )


def _by_rows(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    laid_out, transposed = _layout(right)
    if not left.is_contiguous() or left.data_ptr() % CACHE_LINE_BYTES:
        left = left.clone(memory_format=torch.contiguous_format)
    classes = CLASSES.find(
        ProductShape(
            left.shape[1],
            right.shape[1],
            left.dtype,
            transposed,
            bias is not None,
            laid_out.data_ptr() % CACHE_LINE_BYTES,
        ),
        numerics(),
    )
    product = classes.apply(lambda rows: _product(rows, laid_out, bias), left)
    if bias is None and laid_out is right and classes.fits(left.shape[0]):
        _settled.add(_call_key(left, right))
    return product


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The stock kernel, called by its `out=` overload, which the mode does not override."""
    out = left.new_empty((left.shape[0], right.shape[1]))
    if bias is None:
        return _stock_mm(left, right, out=out)
    return torch.addmm(bias, left, right, out=out)


def _layout(right: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The right-hand side as it is if it is contiguous or the transpose of a contiguous tensor.

    Else a contiguous copy. The second value is true for a transpose.
    """
    if right.is_contiguous():
        return right, False
    if right.t().is_contiguous():
        return right, True
    return right.contiguous(), False


def _make_classes(shape: ProductShape) -> RowClasses:
    bias = torch.linspace(-1, 1, shape.columns).to(shape.dtype) if shape.biased else None
    return RowClasses(shape, lambda left, right: _product(left, right, bias))


CLASSES = ClassTable(_make_classes)
