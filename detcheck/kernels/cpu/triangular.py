"""Batch-invariant solution of triangular systems on the CPU, as gated delta rules need it.

Row after row is eliminated, for all systems at once. So an entry's sum runs in the order of the
rows, whatever the number of systems and of columns, and equations in front that are those of the
identity change nothing. Stock kernels call a library, whose blocks depend on shape and alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

_stock = stock_kernel("linalg_solve_triangular")


def solve_triangular(
    system: torch.Tensor,
    right: torch.Tensor,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> torch.Tensor:
    """aten::linalg_solve_triangular: x with `system @ x = right`, or `x @ system = right`.

    `system` (…, n, n), of which only one triangle is read, and `right` (…, n, k), or (…, k, n) if
    not `left`; float32 or float64. Raises RuntimeError, as the stock op, for shapes or dtypes that
    do not fit.
    """
    if not left:
        solved = solve_triangular(system.mT, right.mT, upper=not upper, unitriangular=unitriangular)
        return solved.mT
    if not _fit(system, right):
        refused: torch.Tensor = _stock(system, right, upper=upper, unitriangular=unitriangular)
        return refused
    batch = torch.broadcast_shapes(system.shape[:-2], right.shape[:-2])
    solution = right.expand(*batch, *right.shape[-2:]).clone(memory_format=torch.contiguous_format)
    size = system.shape[-1]
    for row in reversed(range(size)) if upper else range(size):
        if not unitriangular:
            solution[..., row, :] /= system[..., row, row, None]
        others = slice(0, row) if upper else slice(row + 1, size)
        column = system[..., others, row, None]
        solution[..., others, :].addcmul_(column, solution[..., row, None, :], value=-1)
    return solution


def _fit(system: torch.Tensor, right: torch.Tensor) -> bool:
    """True for operands that the stock op solves; it refuses others."""
    return (
        min(system.dim(), right.dim()) >= 2
        and system.shape[-2] == system.shape[-1] == right.shape[-2]
        and system.dtype == right.dtype
        and system.dtype in (torch.float32, torch.float64)
    )


KERNELS: dict[str, Callable[..., Any]] = {"linalg_solve_triangular": solve_triangular}
"""Overrides by aten op."""
