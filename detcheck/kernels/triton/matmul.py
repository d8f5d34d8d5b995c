"""Batch-invariant mm, addmm, baddbmm and bmm on the GPU.

One kernel computes all of them. Each program computes one tile of the result and adds up over K in
blocks, from 0 on, so a row's bits depend on neither M nor the row's place in the call. No sum over
K is split: on an H100 the layers of few columns, whose tiles are fewer than its processors, gain a
tenth at most from it while decoding, and prefill loses a third and more. Products of many rows by
the weight of a linear layer may be computed by cuBLASLt, if it gives the same bits (`cublas.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import torch
import triton

from detcheck.kernels.cpu.in_order import can_multiply
from detcheck.kernels.cpu.matmul import is_weight
from detcheck.kernels.scales import Scales, scaled, scaled_sum
from detcheck.kernels.triton import cublas, descriptors, in_order
from detcheck.kernels.triton.bit_class import milliseconds
from detcheck.kernels.triton.classes import Way, classes
from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.cublas import Library
from detcheck.kernels.triton.launch import NUMERICS, Repeated, room
from detcheck.kernels.triton.matmul_kernels import product_kernel

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) to (M, N), accumulated in float32; a row's bits do not depend on M.

    bfloat16, float16 and float32 (never as TF32), any strides; other dtypes run as stock.
    """
    if left.dtype not in FLOATS or right.dtype != left.dtype:
        return torch.mm(left, right, out=left.new_empty((left.shape[0], right.shape[1])))
    return multiplied(left[None], right[None], None)[0]


def addmm(
    bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * bias + alpha * (M, K) x (K, N) to (M, N); the bias is added before rounding."""
    if left.dtype not in FLOATS or scaled(scales):
        return scaled_sum(bias, mm(left, right), **scales)
    return multiplied(left[None], right[None], bias)[0]


def bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N).

    Each product with a weight as `mm` computes it; others in the order of K (`in_order.py`).
    """
    if left.dtype not in FLOATS or right.dtype != left.dtype:
        shape = (left.shape[0], left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=left.new_empty(shape))
    if _runs_in_order(left, right):
        return in_order.multiply(left, right)
    return multiplied(left, right, None)


def baddbmm(
    bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * bias + alpha * (B, M, K) x (B, K, N) to (B, M, N), as `bmm`."""
    if left.dtype not in FLOATS or scaled(scales) or _runs_in_order(left, right):
        return scaled_sum(bias, bmm(left, right), **scales)
    return multiplied(left, right, bias)


def _runs_in_order(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True for a product in which padding may change K or N: one of heads, not by a weight."""
    return left.shape[2] > 1 and can_multiply(left, right) and not is_weight(right)


def multiplied(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(B, M, K) x (B, K, N) + bias, which broadcasts to (B, M, N)."""
    rows, inner = left.shape[1:]
    if rows == 0 or inner == 0 or right.shape[2] == 0 or left.shape[0] == 0:
        empty = left.new_zeros((left.shape[0], rows, right.shape[2]))
        return empty if bias is None else empty + bias
    if inner == 1 and bias is None:  # one product an entry: exact, as in rotary embeddings
        return left * right
    return product(left, right, bias, choice(left, right, bias))


def choice(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> Way:
    """The way to multiply these operands."""

    def time(way: Way) -> float:
        return milliseconds(lambda: product(left, right, bias, way), left.device)

    timed = time if left.is_cuda else None
    return classes(left, right, product, bias).way(left.shape[1], timed)


def product(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, way: Way
) -> torch.Tensor:
    """(B, M, K) x (B, K, N) + bias, which broadcasts to (B, M, N), in a given way."""
    if isinstance(way, Library):
        return _by_library(left, right, bias, way)
    if way.descriptors and descriptors.fits(left, right):
        return descriptors.product(left, right, bias, way)
    plan = Plan.of(left.shape, right.shape[2], way)
    return LaunchedProduct(plan, left, right, bias)(left, right, bias)


def _by_library(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, way: Library
) -> torch.Tensor:
    """By cuBLASLt as many rows a call as it was tried with; rows that are left, in another way."""
    rows, start = left.shape[1], 0
    out = left.new_empty((1, rows, right.shape[2]))
    while rows - start >= way.first:
        stop = start + way.rows_at_once(rows - start)
        cublas.multiply(left[0, start:stop], right[0], bias, out[0, start:stop])
        start = stop
    if start < rows:
        out[:, start:] = multiplied(left[:, start:], right, bias)
    return out


@dataclass(frozen=True, slots=True)
class Plan:
    """How a product is cut into programs."""

    tile: Tile
    shape: tuple[int, int, int]
    """(B, M, N) of the result."""
    inner: int
    """K."""
    tiles: int

    @classmethod
    def of(cls, left: tuple[int, ...], columns: int, tile: Tile) -> Plan:
        """The plan for (B, M, K) = `left` times (B, K, `columns`)."""
        batch, rows, inner = left
        tiles = batch * triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
        return cls(tile, (batch, rows, columns), inner, tiles)

    @property
    def named(self) -> dict[str, Any]:
        """The compile-time constants of `product_kernel` but HAS_BIAS, and its options."""
        tile = self.tile
        return {
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "GROUP_M": tile.group_m,
            "WEIGHTS_FIRST": tile.weights_first,
            "EVEN_N": self.shape[2] % tile.block_n == 0,
            "EVEN_K": self.inner % tile.block_k == 0,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            **NUMERICS,
        }


class LaunchedProduct:
    """`product_kernel` for operands of one shape and layout, at any address."""

    __slots__ = ("_grid", "_kernel", "_room", "_rows")

    def __init__(
        self,
        plan: Plan,
        left: torch.Tensor,
        right: torch.Tensor,
        bias: torch.Tensor | None,
        shape: tuple[int, ...] | None = None,
    ):
        """`left` (B, M, K), `right` (B, K, N) and `bias`, which broadcasts to (B, M, N).

        `shape` is the shape of the results, by default (B, M, N).
        """
        batch, self._rows, columns = plan.shape
        self._room = room(left, plan.shape if shape is None else shape)
        self._grid = plan.tiles, 1, 1
        flat = (self._rows * columns, columns, 1)  # strides of the result, which is contiguous
        added = flat if bias is None else bias.expand(plan.shape).stride()
        strides = (left.stride(), right.stride(), added, flat)
        self._kernel = Repeated(
            product_kernel,
            (columns, plan.inner, *(step for each in strides for step in _steps(each, batch))),
            {**plan.named, "HAS_BIAS": bias is not None},
        )

    def __call__(
        self, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The product of operands that lie in memory as those of the constructor do."""
        out = self._room()
        added = out if bias is None else bias
        self._kernel(self._grid, (left, right, added, out), (self._rows,))
        return out


def _steps(strides: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Strides, with 0 between the entries of a batch of one.

    The stride of the batch grows with the rows. The kernel would be compiled anew whenever it
    stops being a multiple of 16.
    """
    return strides if batch > 1 else (0, *strides[1:])
