"""Ops that PyTorch computes by another formula for other sizes: here always by the same one.

They are made of ops that have kernels, or whose rows are invariant. But which of them PyTorch
calls, and in which order, depends on the number of rows: a row alone differs from one in a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial, reduce
from math import prod
from typing import Any

import torch
from torch.backends import opt_einsum

from detcheck.kernels.cpu.matmul import LONGEST_DOT

_KEY = "CompositeImplicitAutograd"
_SETS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
PAIR_BY_PAIR = 2
"""The `compute_mode` of distances that are not computed by a product of matrices."""


def _stock(op: str) -> Callable[..., Any]:
    return partial(torch.library.get_kernel(f"aten::{op}", "CPU").call_boxed, _SETS)


_stock_cdist, _stock_tensordot = _stock("cdist"), _stock("tensordot")


def chained(op: str) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """The product `op` of several matrices, from the left to the right.

    PyTorch takes the order of least work, which depends on the number of rows. A vector may come
    first and last. Raises RuntimeError, as the stock op, for other shapes.
    """
    stock = _stock(op)

    def multiply(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
        ends = {x.dim() for x in (*matrices[:1], *matrices[-1:])}
        fit = len(matrices) > 2 and ends <= {1, 2} and all(x.dim() == 2 for x in matrices[1:-1])
        product: torch.Tensor = reduce(torch.matmul, matrices) if fit else stock(matrices)
        return product

    return multiply


_multi_dot = chained("linalg_multi_dot")


def multi_dot_out(matrices: Sequence[torch.Tensor], *, out: torch.Tensor) -> torch.Tensor:
    """`torch.linalg.multi_dot` into `out`, which is returned."""
    product = _multi_dot(matrices)
    return out.resize_(product.shape).copy_(product)


def tensordot(
    left: torch.Tensor, right: torch.Tensor, left_dims: Sequence[int], right_dims: Sequence[int]
) -> torch.Tensor:
    """aten::tensordot: the sums over pairs of dims; one sum alone is a product of matrices, too.

    PyTorch computes one sum by `dot`, or entry by entry. `torch.inner` comes here as well.
    """
    contracted = [left.shape[dim] for dim in left_dims]
    fit = contracted == [right.shape[dim] for dim in right_dims] and prod(contracted) <= LONGEST_DOT
    if not fit or not left.numel() == right.numel() == prod(contracted):
        product: torch.Tensor = _stock_tensordot(left, right, left_dims, right_dims)
        return product
    row, column = (
        x.movedim([*dims], [*range(-len(dims), 0)]).reshape(-1)
        for x, dims in ((left, left_dims), (right, right_dims))
    )
    return (row[None] @ column[:, None]).view(
        [1] * (left.dim() + right.dim() - len(left_dims) - len(right_dims))
    )


def cdist(
    left: torch.Tensor, right: torch.Tensor, p: float = 2, compute_mode: int | None = None
) -> torch.Tensor:
    """aten::cdist: distances (…, P, R), each pair by itself unless a product is asked for.

    PyTorch computes Euclidean distances by a product if P or R is more than 25.
    """
    distances: torch.Tensor = _stock_cdist(left, right, p, compute_mode or PAIR_BY_PAIR)
    return distances


def keep_formulas() -> Callable[[], None]:
    """Replace these ops; returns what restores PyTorch's own."""
    stack = ExitStack()
    library = torch.library.Library("aten", "IMPL")
    stack.callback(library._destroy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid.*", category=UserWarning)
        for op, function in _FUNCTIONS.items():
            library.impl(op, function, _KEY)
    stack.callback(_contract_in_order())
    return stack.close


def _contract_in_order() -> Callable[[], None]:
    """Let `einsum` of three and more operands contract from the left to the right.

    With the package `opt_einsum` it takes the order of least work.
    """
    settings: Any = opt_einsum
    if not settings.enabled:
        return lambda: None
    settings.enabled = False
    return partial(setattr, settings, "enabled", True)


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "linalg_multi_dot": _multi_dot,
    "linalg_multi_dot.out": multi_dot_out,
    "chain_matmul": chained("chain_matmul"),
    "tensordot": tensordot,
    "cdist": cdist,
}
