"""Batch-invariant mm, addmm, baddbmm and bmm on the GPU.

One kernel computes all of them. Each program computes one tile of the result and adds up over K in
blocks, from 0 on, so a row's bits depend on neither M nor the row's place in the call. No split of
K depends on M. If K is cut into segments at all (`configs.segment_k`), they have a fixed length
that depends on the weight alone. The segments' sums are added in order, whether one program
computes all of them or each has a program of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import torch
import triton

from detcheck.kernels.cpu.in_order import can_multiply
from detcheck.kernels.cpu.matmul import is_weight
from detcheck.kernels.scales import Scales, scaled, scaled_sum
from detcheck.kernels.triton import configs, cublas, descriptors, in_order
from detcheck.kernels.triton.bit_class import milliseconds
from detcheck.kernels.triton.classes import classes
from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.launch import (
    NUMERICS,
    Repeated,
    capturing,
    current_stream,
    processors,
    room,
)
from detcheck.kernels.triton.matmul_kernels import product_kernel

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
COUNTERS = 1024
"""Arrival counters that a stream keeps; a launch with more tiles than this makes its own."""


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
    if cublas.serves(left, right, bias):
        return cublas.product(left, right)
    return product(left, right, bias, *choice(left, right, bias))


def choice(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> tuple[Tile, int]:
    """The tile for a product of these operands, and the length of its segments of K."""
    segment = configs.segment_k(right.shape[2], right.shape[1])

    def time(tile: Tile) -> float:
        return milliseconds(lambda: product(left, right, bias, tile, segment))

    timed = time if left.is_cuda else None
    return classes(left, right, product).tile(left.shape[1], timed), segment


def product(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    tile: Tile,
    segment_k: int = 0,
    parallel: bool | None = None,
) -> torch.Tensor:
    """(B, M, K) x (B, K, N) + bias with a given tile, its sums over K cut every `segment_k`.

    `segment_k` is a multiple of the tile's `block_k`, or 0. `parallel` says whether segments are
    computed side by side, by default if there are too few tiles to keep the device busy; it
    changes no bit. Raises ValueError if `segment_k` is no multiple.
    """
    if segment_k % tile.block_k:
        raise ValueError(f"`segment_k` must be a multiple of {tile.block_k}, not {segment_k}")
    if tile.descriptors and not parallel and descriptors.fits(left, right):
        return descriptors.product(left, right, bias, tile, segment_k)
    plan = Plan.of(left.shape, right.shape[2], tile, segment_k, processors(left.device), parallel)
    return LaunchedProduct(plan, left, right, bias)(left, right, bias)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a product is cut into programs."""

    tile: Tile
    segment_k: int
    shape: tuple[int, int, int]
    """(B, M, N) of the result."""
    inner: int
    """K."""
    tiles: int
    segments: int
    """Segments that have programs of their own; 1 if one program computes all."""

    @classmethod
    def of(
        cls,
        left: tuple[int, ...],
        columns: int,
        tile: Tile,
        segment_k: int,
        processors: int,
        parallel: bool | None = None,
    ) -> Plan:
        """The plan for (B, M, K) = `left` times (B, K, `columns`); see `product`."""
        batch, rows, inner = left
        tiles = batch * triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
        if parallel is None:
            parallel = tiles < processors
        segments = triton.cdiv(inner, segment_k) if segment_k and parallel else 1
        return cls(tile, segment_k, (batch, rows, columns), inner, tiles, segments)

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
            # A single segment is the whole sum.
            "SEGMENT_K": self.segment_k if self.segment_k < self.inner else 0,
            "PARALLEL": self.segments > 1,
            "EVEN_N": self.shape[2] % tile.block_n == 0,
            "EVEN_K": self.inner % tile.block_k == 0,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            **NUMERICS,
        }


class LaunchedProduct:
    """`product_kernel` for operands of one shape and layout, at any address."""

    __slots__ = ("_grid", "_kernel", "_partial", "_room", "_rows", "_tiles")

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
        self._grid = plan.tiles, plan.segments, 1
        self._tiles = plan.tiles
        partial = (plan.segments, *plan.shape)
        self._partial = room(left, partial, torch.float32) if plan.segments > 1 else None
        """Allocates the partial sums, if segments have programs of their own."""
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
        if self._partial is None:
            self._kernel(self._grid, (left, right, added, out, out, out), (self._rows, 0))
        else:
            sums = self._partial()
            arrived = arrival_counters(left, self._tiles)
            operands = (left, right, added, out, sums, arrived)
            self._kernel(self._grid, operands, (self._rows, out.numel()))
        return out


def _steps(strides: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Strides, with 0 between the entries of a batch of one.

    The stride of the batch grows with the rows. The kernel would be compiled anew whenever it
    stops being a multiple of 16.
    """
    return strides if batch > 1 else (0, *strides[1:])


_counters: dict[tuple[int, int], torch.Tensor] = {}
"""By device index and stream."""


def arrival_counters(like: torch.Tensor, count: int) -> torch.Tensor:
    """At least `count` int32 zeros on the device of `like`, for one launch on its current stream.

    A launch leaves zeros behind, so the launches of a stream share them. A CUDA graph may be
    replayed on any stream, beside other launches, so it gets zeros of its own.
    """
    if count > COUNTERS or like.is_meta or capturing():
        return like.new_zeros(count, dtype=torch.int32)
    index = like.get_device()
    key = index, current_stream(index) if index >= 0 else 0
    counters = _counters.get(key)
    if counters is None:
        counters = _counters[key] = like.new_zeros(COUNTERS, dtype=torch.int32)
    return counters
