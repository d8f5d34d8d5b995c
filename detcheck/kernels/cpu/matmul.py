"""Batch-invariant products of matrices on the CPU: stock kernels, kept within one row class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch.nn import functional as F

from detcheck.kernels.cpu.in_order import can_multiply, multiply
from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.rows import (
    ANCHOR_ROWS,
    CACHE_LINE_BYTES,
    ClassTable,
    ProductShape,
    RowClasses,
)
from detcheck.kernels.cpu.stock import stock_kernel
from detcheck.kernels.scales import Scales, scaled, scaled_sum

_DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.complex64, torch.complex128),
)

MIN_COLUMNS = 16
"""Products of fewer columns are padded: a column's bits depend on the number of columns there."""
COLUMN_STEPS = {torch.float64: 24, torch.complex128: 48}
"""Dtypes in which they do so in any product, and the multiple to which all columns are padded.

MKL computes the columns beyond such a multiple by another kernel. The rows start on cache lines."""
COLUMNS_OF_A_THREAD = 32
"""MKL gives threads whole vectors of columns. With up to this number for each thread, one of them
may be left with a part of a vector, for which MKL has another kernel, too."""
SMALL_PRODUCT = 16**3
"""M x K x N up to which PyTorch does not call oneDNN. No product of ANCHOR_ROWS rows is so small.
"""
LONGEST_DOT = 1 << 16
"""Longer products of vectors, such as of all of a model's gradients, run as stock.

They are no rows of a batch, and to look for their classes would take gigabytes."""
_ONE_LAYOUT = {
    torch.float64: False,
    torch.float16: True,
    torch.complex64: False,
    torch.complex128: False,
}
"""Dtypes in which bits depend on the layout: whether the right-hand side becomes a transpose.

The layout of a single column does not tell how a batch of columns lies in memory."""

_BY_MKL = (torch.float32, torch.complex64)

_settled: set[tuple[Any, ...]] = set()
"""Keys of calls that need neither copies nor padding. This is the common case, and fast."""

_stock_mm = stock_kernel("mm")
_stock_bmm = stock_kernel("bmm")
_stock_addmv = stock_kernel("addmv")
_stock_dot = stock_kernel("dot")
_stock_vdot = stock_kernel("vdot")
stock_mm_out = stock_kernel("mm.out")
_stock_addmm_out = stock_kernel("addmm.out")
stock_bmm_out = stock_kernel("bmm.out")


def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) to (M, N); every row has the bits that it has in a call of 32 rows.

    For float32, bfloat16, float16, float64 and complex. Products of integers are exact and run as
    stock. The batch may also be along N: a column has the same bits for any number of columns. If
    the left-hand side is a parameter, it has those of a row in the transposed product.
    """
    if is_weight(left) and not is_weight(right):
        return mm(right.t(), left.t()).t()
    if is_settled(left, right):
        return _product(left, right, None)
    if left.dtype not in _DTYPES or not _fit(left, right):
        result: torch.Tensor = _stock_mm(left, right)
        return result
    if left.shape[1] <= 1 or _empty(left, right):
        return _product(left, right, None)
    return _by_rows(left, right, None)


def addmm(
    bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * bias + alpha * (M, K) x (K, N) to (M, N), row for row independent of M."""
    plain = left.dtype in _DTYPES and _fit(left, right) and not _empty(left, right)
    if plain and bias.dim() == 1 and not scaled(scales) and not is_weight(left):
        return _by_rows(left, right, bias)
    return scaled_sum(bias, mm(left, right), **scales)


def addmm_activation(
    bias: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    use_gelu: bool = False,
    **scales: Unpack[Scales],
) -> torch.Tensor:
    """The GELU or ReLU of `addmm`."""
    total = addmm(bias, left, right, **scales)
    return F.gelu(total) if use_gelu else F.relu(total)


def bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N), for any B and M the same.

    By a weight each product has calls of its own. Other sums run over K in order, so that zeros at
    either end of K, such as the weights of masked keys, do not change them.
    """
    fit = left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0]
    fit = fit and left.shape[2] == right.shape[1] and left.dtype == right.dtype
    if left.dtype not in _DTYPES or not fit or left.shape[2] <= 1 or not len(left):
        result: torch.Tensor = _stock_bmm(left, right)
        return result
    if is_weight(left) and not is_weight(right):
        return _each(right.mT, left.mT).mT  # views that are made here do not know their weight
    if not is_weight(right) and can_multiply(left, right):
        return multiply(left, right)
    return _each(left, right)


def _each(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`bmm` with a call of its own for each product."""
    return torch.stack([mm(one, other) for one, other in zip(left, right, strict=True)])


def baddbmm(
    added: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * added + alpha * (B, M, K) x (B, K, N) to (B, M, N), as `bmm`."""
    return scaled_sum(added, bmm(left, right), **scales)


def addbmm(
    added: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * added + alpha * the sum over B of (B, M, K) x (B, K, N), to (M, N)."""
    products = bmm(left, right)
    total = products[0] if len(products) else added.new_zeros(products.shape[1:])
    for product in products[1:]:
        total = total + product
    return scaled_sum(added, total, **scales)


def mv(left: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K,) to (M,), row for row independent of M."""
    if left.dim() != 2 or vector.dim() != 1:
        refused: torch.Tensor = _stock_addmv(left.new_empty(0), left, vector)
        return refused
    return mm(left, vector[:, None])[:, 0]


def addmv(
    added: torch.Tensor, left: torch.Tensor, vector: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * added + alpha * (M, K) x (K,) to (M,), row for row independent of M."""
    return scaled_sum(added, mv(left, vector), **scales)


def dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(K,) x (K,) to a number, with the bits that `mv` gives a row of up to `LONGEST_DOT` terms.

    `torch.inner` and `torch.tensordot` of a batch of one come here, larger batches to `mm`.
    """
    if not _are_vectors(left, right):
        result: torch.Tensor = _stock_dot(left, right)
        return result
    return mm(left[None], right[:, None]).view(())


def vdot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`dot` of the complex conjugate of `left`."""
    if not _are_vectors(left, right):
        result: torch.Tensor = _stock_vdot(left, right)
        return result
    return dot(left.conj().resolve_conj(), right.resolve_conj())


def into_out(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The `out=` variant of a kernel. Raises RuntimeError for an `out` of another dtype."""

    def write(*args: Any, out: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result = kernel(*args, **kwargs)
        if out.dtype != result.dtype:
            raise RuntimeError(
                f"Expected out tensor to have dtype {result.dtype}, but got {out.dtype} instead"
            )
        return out.resize_(result.shape).copy_(result)

    return write


def over_first(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The in-place variant of a kernel that adds to its first argument."""

    def write(added: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return added.copy_(kernel(added, *args, **kwargs))

    return write


_OUT_OF_PLACE: dict[str, Callable[..., torch.Tensor]] = {
    "mm": mm,
    "addmm": addmm,
    "_addmm_activation": addmm_activation,
    "bmm": bmm,
    "baddbmm": baddbmm,
    "addbmm": addbmm,
    "mv": mv,
    "addmv": addmv,
    "dot": dot,
    "vdot": vdot,
}
KERNELS: dict[str, Callable[..., torch.Tensor]] = (
    _OUT_OF_PLACE
    | {f"{op}.out": into_out(kernel) for op, kernel in _OUT_OF_PLACE.items()}
    | {f"{op}_": over_first(_OUT_OF_PLACE[op]) for op in ("addmm", "baddbmm", "addbmm", "addmv")}
)
"""Overrides by aten op."""


def is_weight(x: torch.Tensor) -> bool:
    """True for a parameter and for its views, such as its transpose."""
    if type(x) is torch.nn.Parameter:
        return True
    return x._is_view() and type(x._base) is torch.nn.Parameter


def _fit(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True for operands that the stock op multiplies; it refuses others."""
    shapes_fit = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]
    return shapes_fit and left.dtype == right.dtype


def _are_vectors(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True for vectors of one length and dtype; the stock op refuses others, or is exact."""
    fit = left.dim() == 1 and left.shape == right.shape and left.dtype == right.dtype
    return fit and left.dtype in _DTYPES and left.numel() <= LONGEST_DOT


def _empty(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True for a product without entries, or of sums of nothing."""
    return not left.numel() or not right.numel()


def is_settled(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True if such a call was found to need neither copies nor padding."""
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
    columns = right.shape[1]
    laid_out, transposed = _layout(right)
    if bias is not None and laid_out.shape[1] > columns:
        bias = F.pad(bias.expand(len(left), columns)[0], (0, laid_out.shape[1] - columns))
    if not left.is_contiguous() or left.data_ptr() % CACHE_LINE_BYTES:
        left = left.clone(memory_format=torch.contiguous_format)
    classes = CLASSES.find(
        ProductShape(
            left.shape[1],
            laid_out.shape[1],
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
    return product[:, :columns].contiguous()


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The stock kernel as it is."""
    out = left.new_empty((left.shape[0], right.shape[1]))
    result: torch.Tensor
    if bias is None:
        result = stock_mm_out(left, right, out=out)
    else:
        result = _stock_addmm_out(bias, left, right, beta=1, alpha=1, out=out)
    return result


def _layout(right: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The right-hand side (K, N) in a layout, and of a width, at which N does not change bits.

    As it is if that holds, else a copy, with further columns of zeros if need be. The second value
    is true for the transpose of a contiguous tensor.
    """
    inner, columns = right.shape
    transposed = _ONE_LAYOUT.get(right.dtype, right.stride(0) < right.stride(1))
    wide = _padded_columns(inner, columns, right.dtype)
    if wide == columns and (right.t() if transposed else right).is_contiguous():
        return right, transposed
    copy = right.new_zeros((wide, inner)).t() if transposed else right.new_zeros((inner, wide))
    copy[:, :columns] = right
    return copy, transposed


def _padded_columns(inner: int, columns: int, dtype: torch.dtype) -> int:
    """The smallest N, not below `columns`, at which a column has the bits of any larger product."""
    least = (SMALL_PRODUCT // (ANCHOR_ROWS * inner) // MIN_COLUMNS + 1) * MIN_COLUMNS
    wide = max(columns, least)
    threads, step = torch.get_num_threads(), COLUMN_STEPS.get(dtype, 1)
    if dtype in _BY_MKL and threads > 2 and wide <= threads * COLUMNS_OF_A_THREAD:
        step = max(step, MIN_COLUMNS)
    return -(-wide // step) * step


def _make_classes(shape: ProductShape) -> RowClasses:
    bias = torch.linspace(-1, 1, shape.columns).to(shape.dtype) if shape.biased else None
    return RowClasses(shape, lambda left, right: _product(left, right, bias))


CLASSES = ClassTable(_make_classes)
