"""cuBLASLt as one more way to compute a product, to the bits of our own tiles.

cuBLASLt takes another kernel for another M. As long as none of them splits K, each adds up over K
in growing order, as our tiles do. On an H100 it gave their bits and was the fastest for 61 of the
68 products of 128 rows and more that `make gpu` measured. With fewer rows its kernels without
split-K can be several times slower, so it is not asked there.

That the bits are equal is not assumed. For each kind of product (N, K, dtype, with a bias or not)
every M that may run is compared with the anchor tile, on data that cancel, before the first use.
A kind that fails is computed by our tiles. `DETCHECK_PRODUCTS=triton` leaves cuBLASLt out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from detcheck.kernels.triton import cublas_settings
from detcheck.kernels.triton.launch import room

VARIABLE = "DETCHECK_PRODUCTS"
ROWS_STEP = 64
EVERY_M = 1024
"""Up to this number of rows each M runs as it is; of more rows, multiples of ROWS_STEP."""
MOST_ROWS = 8192
MOST_RESULT_BYTES = 1 << 29
"""Of one call; more rows are computed by several."""
FEWEST_ROWS = 65
ALIGNMENT_BYTES = 256
"""Of the operands' addresses. cuBLASLt looks at powers of two up to this when it picks a kernel."""
WHOLE_ENTRIES = 8
"""N and K must be multiples of this: rows of 16 bytes, as cuBLASLt's fast kernels need them."""
HALF = (torch.bfloat16, torch.float16)

_alone: list[torch.Tensor] = []
"""The result of a product that has changed the settings for itself alone, if there is one."""

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(M, K) x (K, N) + bias (N,) to (M, N)."""


@dataclass(frozen=True, slots=True)
class Library:
    """cuBLASLt for M from `first` to `last`."""

    first: int
    last: int

    def rows(self) -> Iterator[int]:
        """Every number of rows that a call may have."""
        yield from range(self.first, min(self.last, EVERY_M) + 1)
        above = max(self.first // ROWS_STEP * ROWS_STEP, EVERY_M)
        yield from range(above, self.last + 1, ROWS_STEP)

    def rows_at_once(self, rows: int) -> int:
        """The rows that one call computes, of `rows`, which are at least `first`."""
        rows = min(rows, self.last)
        return rows if rows <= EVERY_M else rows // ROWS_STEP * ROWS_STEP


def ways(columns: int, above: int, limit: int) -> list[Library]:
    """What cuBLASLt may compute of M in (`above`, `limit`], by a weight of N = `columns`."""
    most = min(limit, MOST_ROWS, MOST_RESULT_BYTES // (2 * columns) // ROWS_STEP * ROWS_STEP)
    return [Library(above + 1, most)] if FEWEST_ROWS <= above + 1 <= most else []


def fits(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """True if cuBLASLt may be tried for (1, M, K) x (1, K, N) + bias as they lie in memory."""
    batch, rows, inner = left.shape
    columns = right.shape[2]
    return (
        left.is_cuda
        and batch == 1
        and rows >= FEWEST_ROWS
        and left.dtype in HALF
        and not (inner % WHOLE_ENTRIES or columns % WHOLE_ENTRIES)
        and left.stride()[1:] == (inner, 1)
        and right.stride()[1:] == (1, inner)
        and are_aligned(left, right)
        and (bias is None or _is_row(bias, columns, left.dtype))
        and is_enabled()
        and cublas_settings.is_allowed()
    )


def _is_row(bias: torch.Tensor, columns: int, dtype: torch.dtype) -> bool:
    """True if a bias is one that cuBLASLt was tried with; others are copied first, or refused."""
    alike = (bias.shape, bias.stride(), bias.dtype) == ((columns,), (1,), dtype)
    return alike and are_aligned(bias)


def are_aligned(*operands: torch.Tensor) -> bool:
    """True if the addresses are such as cuBLASLt was tried with."""
    return not any(x.data_ptr() % ALIGNMENT_BYTES for x in operands)


def agrees(
    way: Library, block: torch.Tensor, weight: torch.Tensor, bias: Any, expected: torch.Tensor
) -> bool:
    """True if each number of rows of `way` gives the rows of `expected` (ROWS_STEP, N).

    `block` (ROWS_STEP, K) is multiplied by `weight` (K, N), its rows repeated as often as need be.
    """
    times = -(-way.last // len(block))
    left, wanted = block.repeat(times, 1), expected.repeat(times, 1)
    return all(
        torch.equal(multiply(left[:rows], weight, bias), wanted[:rows]) for rows in way.rows()
    )


def multiply(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(M, K) x (K, N) + bias (N,) by cuBLASLt, past any override; into `out` if it is given."""
    if out is None:
        out = left.new_empty((len(left), right.shape[1]))
    if not _alone and cublas_settings.is_set():
        return _multiply(left, right, bias, out)
    with cublas_settings.LOCK:
        _alone.append(out)
        try:
            with cublas_settings.without_splits():
                return _multiply(left, right, bias, out)
        finally:
            _alone.pop()


def _multiply(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    if bias is None:
        return torch.mm(left, right, out=out)
    return torch.addmm(bias, left, right, out=out)


class KeptProduct:
    """A linear layer by cuBLASLt, for inputs of one shape and layout."""

    __slots__ = ("_inner", "_other", "_room", "_shape")

    def __init__(self, rows: torch.Tensor, columns: int, shape: tuple[int, ...], other: Multiply):
        """`rows` (1, M, K) gives results of `shape`; `other` serves operands that are refused."""
        self._inner, self._shape, self._other = rows.shape[2], shape, other
        self._room = room(rows, (rows.shape[1], columns))

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """(…, K) by the weight (N, K) of a linear layer."""
        aligned = are_aligned(x, weight) and (bias is None or are_aligned(bias))
        if aligned and cublas_settings.is_allowed():
            out = multiply(x.view(-1, self._inner), weight.t(), bias, self._room())
            return out.view(self._shape)
        return self._other(x, weight, bias)


@cache
def is_enabled() -> bool:
    """True if cuBLASLt may be tried in this process."""
    return os.environ.get(VARIABLE, "") != "triton" and cublas_settings.is_available()
