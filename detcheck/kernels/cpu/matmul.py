"""Batch-invariant mm, addmm and bmm on the CPU: stock kernels, kept within one row class."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.cpu.rows import BLOCK_ROWS, CACHE_LINE_BYTES, ProductShape, RowClasses

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)

_settled: set[tuple[Any, ...]] = set()
"""Calls whose operands run as they are, by all that this may depend on: the common case, fast."""

_settled_linears: dict[tuple[Any, ...], tuple[tuple[int, int], tuple[int, int], torch.Size]] = {}
"""The same for linear layers: shapes of the left-hand side, the product and the result."""

_stock_mm = torch.mm
_stock_linear = F.linear


def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) to (M, N); every row is bitwise what it is in a call of 32 rows.

    float32, bfloat16, float16 and float64; other dtypes (integers) run as stock, being exact.
    """
    if _is_settled(left, right):
        return _stock_mm(left, right, out=left.new_empty((left.shape[0], right.shape[1])))
    if left.dtype not in _FLOATS or left.shape[1] <= 1 or _empty(left, right):
        return _stock_mm(left, right, out=left.new_empty((left.shape[0], right.shape[1])))
    return _by_rows(left, right, None)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(…, K) by the (N, K) weight of a linear layer to (…, N), without the way round by dispatch.

    A shortcut to `mm` for calls that need neither copies nor padding, in inference. All others
    take the stock decomposition, which reaches `mm` or `addmm` anyway: so do packed weights and
    other tensors of a kind of their own, and all where autocast or somebody else watches.
    """
    watched = torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() > 0
    watched = watched or torch.is_autocast_enabled("cpu")
    usual = not watched and type(weight) in _PLAIN and input.is_cpu
    if bias is not None:
        # Of what is not contiguous PyTorch adds the bias after rounding, and a slice of one request
        # is contiguous where the same of several is not.
        return _stock_linear(input.contiguous(), weight, bias)
    if not usual or not input.is_contiguous() or input.data_ptr() % CACHE_LINE_BYTES:
        return _stock_linear(input, weight)
    key = (
        input.shape,
        weight.shape,
        weight.stride(),
        input.dtype,
        weight.data_ptr() % CACHE_LINE_BYTES,
        torch.get_num_threads(),
    )
    shapes = _settled_linears.get(key)
    if shapes is None:
        out = _stock_linear(input, weight)
        rows = (input.numel() // max(1, input.shape[-1]), input.shape[-1])
        if input.dim() > 1 and _is_settled(input.view(rows), weight.t()):
            _settled_linears[key] = (rows, (rows[0], weight.shape[0]), out.shape)
        return out
    left_shape, product_shape, out_shape = shapes
    product = input.new_empty(product_shape)
    return _stock_mm(input.view(left_shape), weight.t(), out=product).view(out_shape)


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


def _is_settled(left: torch.Tensor, right: torch.Tensor) -> bool:
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
        torch.get_num_threads(),
    )


def _by_rows(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    laid_out, transposed = _layout(right)
    if not left.is_contiguous() or left.data_ptr() % CACHE_LINE_BYTES:
        left = left.clone(memory_format=torch.contiguous_format)
    classes = _row_classes(
        ProductShape(
            left.shape[1],
            right.shape[1],
            left.dtype,
            transposed,
            bias is not None,
            laid_out.data_ptr() % CACHE_LINE_BYTES,
        ),
        torch.get_num_threads(),
    )
    rows = left.shape[0]
    if rows > BLOCK_ROWS:
        blocks = left.split(BLOCK_ROWS)
        return torch.cat([_padded(classes, block, laid_out, bias) for block in blocks])
    if bias is None and laid_out is right and classes.padded_rows(rows) == rows:
        _settled.add(_call_key(left, right))
    return _padded(classes, left, laid_out, bias)


def _padded(
    classes: RowClasses, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    padded = classes.padded_rows(left.shape[0])
    if padded is not None:
        return _padded_to(padded, left, right, bias)
    size = classes.tile_rows
    return torch.cat([_padded_to(size, tile.clone(), right, bias) for tile in left.split(size)])


def _padded_to(
    padded: int, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    rows = left.shape[0]
    if padded == rows:
        return _product(left, right, bias)
    wide = left.new_zeros((padded, left.shape[1]))
    wide[:rows] = left
    return _product(wide, right, bias)[:rows]


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The stock kernel, reached by its `out=` overload, which the mode leaves alone."""
    out = left.new_empty((left.shape[0], right.shape[1]))
    if bias is None:
        return _stock_mm(left, right, out=out)
    return torch.addmm(bias, left, right, out=out)


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
