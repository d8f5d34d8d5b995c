"""Batch-invariant reductions over dims on the CPU: stock kernels, always on contiguous rows.

Along contiguous rows the stock kernels reduce each row in one order, for any number of rows.
There are two exceptions, and both are mended here:

- If the reduced dims are not the last ones, or the tensor is not contiguous, PyTorch reduces
  several columns at a time as vectors and the rest one by one, in a different order. Which column
  is in which group depends on the batch. So the kept dims are brought to the front first.
- If there is a single output of many elements, PyTorch splits it over the threads and adds up the
  parts. A row of 49152 alone therefore sums differently from the same row among others. Such a
  reduction gets two equal rows instead (a view, not a copy), and the first result is taken. For
  the variance of a single row PyTorch has another formula, so such a row of any size gets two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

SPLIT_ELEMENTS = 32768
"""From here on a reduction to one output is split over threads (at::internal::GRAIN_SIZE)."""

Kernel = Callable[..., Any]
Dims = int | Sequence[int] | None


def over_dims(
    op: str, dims_at: int, stock: Kernel | None = None, split: int = SPLIT_ELEMENTS
) -> Kernel:
    """The op `op` (x, …), whose dims (an integer or several) are positional argument `dims_at`.

    The next argument is `keepdim`. x may have any shape, layout and dtype; the other arguments
    are those of the op itself. `stock` computes it for contiguous rows; None: the stock kernel.
    A row alone of `split` elements or more gets a second one.
    """
    stock = stock or stock_kernel(op)

    def reduce(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dims = args[dims_at - 1]
        if x.is_contiguous() and _is_last(x, dims):
            if x.numel() < split:
                return stock(x, *args, **kwargs)
            return _of_rows(x, stock, args, kwargs, dims_at, split)
        reduced = _from_front(x, dims)
        if reduced is None:
            return stock(x, *args, **kwargs)
        order = [*(dim for dim in range(x.dim()) if dim not in reduced), *reduced]
        last = range(x.dim() - len(reduced), x.dim())
        args = _with_dims(args, dims_at, last[0] if isinstance(dims, int) else [*last])
        result = _of_rows(x.permute(order).contiguous(), stock, args, kwargs, dims_at, split)
        if result.dim() != x.dim():
            return result
        return result.permute([order.index(dim) for dim in range(x.dim())])  # keepdim

    return reduce


def into_out(op: str, kernel: Kernel) -> Kernel:
    """The `out=` variant `op` of a kernel. Sums and products are in the dtype of `out`.

    That of `sum` is left as it is: the stock mean calls it, and would then call Python twice.
    """
    stock = stock_kernel(op)
    in_its_dtype = op.startswith(("nansum", "prod"))

    def reduce(x: torch.Tensor, *args: Any, out: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if in_its_dtype and kwargs.get("dtype") is None:
            kwargs["dtype"] = out.dtype
        result = kernel(x, *args, **kwargs)
        if out.dtype != result.dtype:
            refused: torch.Tensor = stock(x, *args, out=out, **kwargs)
            return refused
        return out.resize_(result.shape).copy_(result)

    return reduce


def vector_norm(
    x: torch.Tensor,
    order: Any = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::linalg_vector_norm, with a default for its dims."""
    return _vector_norm(x, order, dim, keepdim, dtype=dtype)


def nansum(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::nansum, with a default for its dims."""
    return _nansum(x, dim, keepdim, dtype=dtype)


def spread(op: str) -> Kernel:
    """aten's variance or standard deviation `op`, with a default for its dims."""
    reduce = over_dims(op, 1, split=1)

    def reduced(x: torch.Tensor, dim: Dims = None, **kwargs: Any) -> Any:
        return reduce(x, dim, **kwargs)

    return reduced


def prod_of_all(x: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """aten::prod of all entries, with the bits of one row."""
    result: torch.Tensor = _prod(x.reshape(-1), 0, False, dtype=dtype)
    return result


_vector_norm = over_dims("linalg_vector_norm", 2)
_nansum = over_dims("nansum", 1)


def _of_rows(
    x: torch.Tensor,
    stock: Kernel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dims_at: int,
    split: int,
) -> torch.Tensor:
    """Reduce the last dims of a contiguous `x`, never split over threads."""
    dims = args[dims_at - 1]
    if x.numel() < split or not _single_output(x, dims):
        result: torch.Tensor = stock(x, *args, **kwargs)
        return result
    reduced = _from_front(x, dims) or []
    behind = reduced[0] + 1 if isinstance(dims, int) else [dim + 1 for dim in reduced]
    pair = x[None].expand(2, *x.shape)
    of_pair: torch.Tensor = stock(pair, *_with_dims(args, dims_at, behind), **kwargs)
    return of_pair[0]


def _with_dims(args: tuple[Any, ...], dims_at: int, dims: int | list[int]) -> tuple[Any, ...]:
    return (*args[: dims_at - 1], dims, *args[dims_at:])


def _is_last(x: torch.Tensor, dims: Dims) -> bool:
    """True for the last dim alone, the usual case; others take a longer way."""
    last = x.dim() - 1
    if last < 0:
        return False
    return dims in (-1, last) if isinstance(dims, int) else dims in ([-1], [last])


def _single_output(x: torch.Tensor, dims: Dims) -> bool:
    kept = set(range(x.dim())) - {*(_from_front(x, dims) or ())}
    return all(x.shape[dim] == 1 for dim in kept)


def _from_front(x: torch.Tensor, dims: Dims) -> list[int] | None:
    """The reduced dims, sorted and counted from the front; no dims given means all of them.

    None for a tensor without dims, and for dims that the op itself refuses.
    """
    given = [dims] if isinstance(dims, int) else [*dims] if dims else [*range(x.dim())]
    found = sorted({dim % x.dim() for dim in given if -x.dim() <= dim < x.dim()})
    return found if found and len(found) == len(given) else None


_logsumexp_out = stock_kernel("logsumexp.out")


def _stock_logsumexp(x: torch.Tensor, dim: Dims, keepdim: bool = False) -> torch.Tensor:
    """The stock kernel calls the `out=` variant, which is overridden: so this takes that one."""
    dtype = x.dtype if x.is_floating_point() or x.is_complex() else torch.get_default_dtype()
    result: torch.Tensor = _logsumexp_out(x, dim, keepdim, out=x.new_empty(0, dtype=dtype))
    return result


_mean = over_dims("mean.dim", 1)
_prod = over_dims("prod.dim_int", 1)
_logsumexp = over_dims("logsumexp", 1, _stock_logsumexp)
_std, _var = spread("std.correction"), spread("var.correction")
_OUT: dict[str, Kernel] = {
    "mean.out": _mean,
    "nansum.out": nansum,
    "prod.int_out": _prod,
    "prod.out": prod_of_all,
    "logsumexp.out": _logsumexp,
    "linalg_vector_norm.out": vector_norm,
    "std.correction_out": _std,
    "var.correction_out": _var,
}
KERNELS: dict[str, Kernel] = {
    "mean.dim": _mean,
    "sum.dim_IntList": over_dims("sum.dim_IntList", 1),
    "nansum": nansum,
    "prod.dim_int": _prod,
    "prod": prod_of_all,
    "logsumexp": _logsumexp,
    "linalg_vector_norm": vector_norm,
    "std.correction": _std,
    "var.correction": _var,
    **{op: into_out(op, kernel) for op, kernel in _OUT.items()},
}
"""Overrides by aten op."""
