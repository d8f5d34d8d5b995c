"""Batch-invariant mm, addmm and bmm on the CPU: stock kernels, kept within one row class."""

from __future__ import annotations

from functools import cache

import torch

from detcheck.kernels.cpu.rows import BLOCK_ROWS, CACHE_LINE_BYTES, ProductShape, RowClasses

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_mm_out = torch.ops.aten.mm.out
_addmm_out = torch.ops.aten.addmm.out
_bmm_out = torch.ops.aten.bmm.out


def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) to (M, N); every row is bitwise what it is in a call of 32 rows.

    float32, bfloat16, float16 and float64; other dtypes (integers) run as stock, being exact.
    """
    if left.dtype not in _FLOATS or left.shape[1] <= 1 or left.shape[0] == 0:
        return _mm_out(left, right, out=_empty(left, right))
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
    plain = left.dtype in _FLOATS and left.shape[0] > 0
    if plain and bias.dim() == 1 and beta == 1 and alpha == 1:
        return _by_rows(left, right, bias)
    return mm(left, right) * alpha + bias * beta


def bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N): each product on its own, so B and M do not matter."""
    if left.dtype not in _FLOATS or left.shape[2] <= 1 or left.shape[0] == 0:
        shape = (left.shape[0], left.shape[1], right.shape[2])
        return _bmm_out(left, right, out=left.new_empty(shape))
    return torch.stack([mm(one, other) for one, other in zip(left, right, strict=True)])


def _by_rows(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    right, transposed = _layout(right)
    if not left.is_contiguous() or left.data_ptr() % CACHE_LINE_BYTES:
        left = left.clone(memory_format=torch.contiguous_format)
    rows = left.shape[0]
    classes = _row_classes(
        ProductShape(
            left.shape[1],
            right.shape[1],
            left.dtype,
            transposed,
            bias is not None,
            right.data_ptr() % CACHE_LINE_BYTES,
        ),
        torch.get_num_threads(),
    )
    if rows > BLOCK_ROWS:
        blocks = left.split(BLOCK_ROWS)
        return torch.cat([_padded(classes, block, right, bias) for block in blocks])
    return _padded(classes, left, right, bias)


def _padded(
    classes: RowClasses, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    rows = left.shape[0]
    padded = classes.padded_rows(rows)
    if padded == rows:
        return _product(left, right, bias)
    wide = left.new_zeros((padded, left.shape[1]))
    wide[:rows] = left
    return _product(wide, right, bias)[:rows]


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The stock kernel, reached by its `out=` overload, which the mode leaves alone."""
    if bias is None:
        return _mm_out(left, right, out=_empty(left, right))
    return _addmm_out(bias, left, right, out=_empty(left, right))


def _empty(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.new_empty((left.shape[0], right.shape[1]))


def _layout(right: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The right-hand side as is where it is plain or a plain transpose, else copied."""
    if right.is_contiguous():
        return right, False
    if right.t().is_contiguous():
        return right, True
    return right.contiguous(), False


@cache
def _row_classes(shape: ProductShape, num_threads: int) -> RowClasses:
    """One table a shape; the number of threads is part of the key since it shapes the blocks."""
    bias = torch.linspace(-1, 1, shape.columns).to(shape.dtype) if shape.biased else None
    return RowClasses(shape, lambda left, right: _product(left, right, bias))
