"""Shared by reductions over rows: one program a row, blocks of a fixed size from its start.

A row's bits then depend on its own length alone. Each kernel reads a row as it lies in memory, by
its stride. A reduction over other dimensions is brought into rows first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.launch import NUMERICS, Repeated, keep, room

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
MAX_BLOCK = 4096
"""Longest block that a program holds at once: 32 values a thread at 4 warps."""
NUM_WARPS = 4

Output = tuple[Sequence[int], torch.dtype]
"""Shape and dtype of a result."""


class RowCall:
    """A kernel for tensors of one shape and layout, ready to launch.

    The kernel takes a tensor, other inputs, outputs, numbers, and constants, among them ACC, the
    dtype that it accumulates in.
    """

    __slots__ = ("_grid", "_kernel", "_numbers", "_rooms")

    def __init__(
        self,
        kernel: Any,
        like: torch.Tensor,
        programs: int,
        outputs: Sequence[Output],
        constant: tuple[int, ...],
        named: dict[str, Any],
        *,
        wide: bool,
        numbers: tuple[int, ...] = (),
    ):
        """The outputs are allocated on the device of `like`.

        `numbers` are not specialised, `constant` are; `wide` accumulates in float64.
        """
        accumulator = tl.float64 if wide else tl.float32
        named = {**named, "ACC": accumulator, "num_warps": NUM_WARPS, **NUMERICS}
        self._kernel = Repeated(kernel, constant, named)
        self._grid = programs, 1, 1
        self._numbers = numbers
        self._rooms = tuple(room(like, *output) for output in outputs)

    @classmethod
    def over(
        cls,
        kernel: Any,
        rows: torch.Tensor,
        outputs: Sequence[Output],
        named: dict[str, Any],
        *,
        wide: bool = False,
    ) -> RowCall:
        """A program a row, for tensors that lie as `rows` (rows, length) do.

        The kernel's constants are the length of a row, the stride between rows, and BLOCK.
        """
        length = rows.shape[1]
        named = {**named, "BLOCK": block_size(length)}
        return cls(kernel, rows, len(rows), outputs, (length, rows.stride(0)), named, wide=wide)

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The outputs for inputs that lie as the constructor was told."""
        outputs = [allocate() for allocate in self._rooms]
        self._kernel(self._grid, (*inputs, *outputs), self._numbers)
        return outputs

    def only(self, x: torch.Tensor) -> torch.Tensor:
        """The output of a kernel that has no other inputs and one output."""
        out = self._rooms[0]()
        self._kernel(self._grid, (x, out), self._numbers)
        return out


_kept: dict[Any, RowCall] = {}


def kept_call(kind: Any) -> RowCall | None:
    """The call that was kept for a kind of operands, if there is one."""
    return _kept.get(kind)


def first_call(
    kind: Any, call: RowCall, x: torch.Tensor, rows: torch.Tensor, *inputs: torch.Tensor
) -> list[torch.Tensor]:
    """Make a call; keep it if `rows` is a view of `x`, so that it serves other tensors like `x`."""
    if rows.data_ptr() == x.data_ptr():
        keep(_kept, kind, call)
    return call(rows, *inputs)


def block_size(length: int) -> int:
    """The block for rows of a length: a function of the length alone."""
    return min(MAX_BLOCK, triton.next_power_of_2(max(length, 16)))


def as_rows(x: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """`x` as (rows, length), the dimensions in `dims` folded into a row in their order.

    A view if the layout allows it, with the entries of a row side by side; else a copy.
    """
    if x.dim() == 0:
        return x.reshape(1, 1)
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    rows = x.permute(*kept, *dims).reshape(-1, prod(x.shape[dim] for dim in dims))
    return rows if rows.stride(1) == 1 else rows.contiguous()


def normalized_dims(x: torch.Tensor, dims: Sequence[int] | int | None) -> list[int]:
    """`dims` counted from 0 and in growing order; all dimensions for None and for an empty list."""
    if isinstance(dims, int):
        dims = [dims]
    if not dims:
        return list(range(x.dim()))
    return sorted({dim % x.dim() for dim in dims}) if x.dim() else []


def reduced_shape(x: torch.Tensor, dims: Sequence[int], keepdim: bool) -> list[int]:
    """Shape of a reduction of `x` over `dims` (normalized)."""
    if keepdim:
        return [1 if dim in dims else size for dim, size in enumerate(x.shape)]
    return [size for dim, size in enumerate(x.shape) if dim not in dims]
