"""Batch-invariant grouped products on the GPU: each token by the weight of its expert.

Tokens are sorted by expert. A tile holds tokens of one expert only, and adds up over K as
`product_kernel` does. So a token's bits depend on neither how many tokens its expert got nor on
its place among them.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from detcheck.kernels.grouped import GroupedProduct
from detcheck.kernels.triton import matmul
from detcheck.kernels.triton.bit_class import milliseconds
from detcheck.kernels.triton.classes import ProductKind, TileClass
from detcheck.kernels.triton.configs import Tile, table
from detcheck.kernels.triton.launch import NUMERICS, Repeated, capability, keep
from detcheck.kernels.triton.matmul_kernels import _accumulate


@triton.jit(do_not_specialize=["tiles_m"])
def grouped_kernel(
    left, right, offsets, out, tiles_m, N, K, EXPERTS,
    stride_lm, stride_lk, stride_re, stride_rk, stride_rn, stride_om,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr, WEIGHTS_FIRST: tl.constexpr, EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """out (T, N): token t of `left` (T, K) times the weight of its expert, `right` (E, K, N).

    `offsets` (E,) int32: expert e has the tokens before offsets[e] that no expert before it has.
    Expert e has slots for one tile more than its tokens fill: it starts at slot
    offsets[e - 1] // BLOCK_M + e. Grid: (tiles_m * tiles along N, 1, 1).
    """
    slot = tl.program_id(0) % tiles_m  # programs that share a weight follow one another
    column = (tl.program_id(0) // tiles_m) * BLOCK_N
    experts = tl.arange(0, BLOCK_E)
    first = tl.load(offsets + experts - 1, mask=(experts > 0) & (experts < EXPERTS), other=0)
    starts = tl.where(experts < EXPERTS, first // BLOCK_M + experts, 1 << 30)
    expert = tl.sum((starts <= slot).to(tl.int32), axis=0) - 1
    begin = tl.load(offsets + expert - 1, mask=expert > 0, other=0)
    row = begin + (slot - begin // BLOCK_M - expert) * BLOCK_M
    end = tl.load(offsets + expert)
    if row >= end:
        return
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # Rows and columns past the edge read the tile's first one: no mask in the loop, never stored.
    safe_rows = tl.where(rows < end - row, rows, 0)
    safe_columns = columns if EVEN_N else tl.where(columns < N - column, columns, 0)
    left += row.to(tl.int64) * stride_lm
    right += expert.to(tl.int64) * stride_re + column.to(tl.int64) * stride_rn
    acc = _accumulate(
        left + (safe_rows[:, None] * stride_lm + ks[None, :] * stride_lk),
        right + (ks[:, None] * stride_rk + safe_columns[None, :] * stride_rn),
        BLOCK_K * stride_lk, BLOCK_K * stride_rk, K,
        BLOCK_M, BLOCK_N, BLOCK_K, WEIGHTS_FIRST, EVEN_K,
    )  # fmt: skip
    if WEIGHTS_FIRST:
        acc = tl.trans(acc)
    out += row.to(tl.int64) * stride_om + column
    tl.store(
        out + rows.to(tl.int64)[:, None] * stride_om + columns[None, :],
        acc.to(out.dtype.element_ty),
        mask=(rows < end - row)[:, None] & (columns < N - column)[None, :],
    )


def tokens_by_expert(left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """(T, K) x (E, K, N) to (T, N) in the fastest tile of the class; `offs` (E,) int32."""
    tokens, inner = left.shape
    experts, _, columns = right.shape
    if tokens == 0 or columns == 0 or inner == 0:
        return left.new_zeros((tokens, columns))

    def time(tile: Any) -> float:
        return milliseconds(lambda: product(left, right, offs, tile), left.device)

    kind = ProductKind(inner, columns, left.dtype, right.stride(2) != 1, left.device)
    rows = -(-tokens // experts)  # of an expert, if all had equally many
    tile: Any = _class(kind).way(rows, time if left.is_cuda else None)
    return product(left, right, offs, tile)


@cache
def _class(kind: ProductKind) -> TileClass:
    def multiply(left: torch.Tensor, right: torch.Tensor, bias: Any, tile: Tile) -> torch.Tensor:
        """One expert for all rows."""
        del bias
        offs = torch.full((1,), left.shape[1], dtype=torch.int32, device=left.device)
        return product(left[0], right, offs, tile)[None]

    tiles = table(kind.dtype, capability(kind.device))
    tiles = tuple(entry for entry in tiles if not entry[1].descriptors)
    return TileClass(kind, tiles, multiply)


_kept: dict[Any, Repeated] = {}


def product(
    left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor, tile: Tile
) -> torch.Tensor:
    """`tokens_by_expert` with a given tile."""
    tokens, inner = left.shape
    experts, _, columns = right.shape
    kind = (
        tile, left.stride(), left.dtype, left.get_device(), right.shape, right.stride(),
        right.dtype, offs.dtype,
    )  # fmt: skip
    kernel = _kept.get(kind)
    if kernel is None:
        strides = (*left.stride(), *right.stride(), columns)
        kernel = Repeated(grouped_kernel, (columns, inner, experts, *strides), {
            "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
            "BLOCK_E": triton.next_power_of_2(experts), "WEIGHTS_FIRST": tile.weights_first,
            "EVEN_N": columns % tile.block_n == 0, "EVEN_K": inner % tile.block_k == 0,
            "num_warps": tile.num_warps, "num_stages": tile.num_stages, **NUMERICS,
        })  # fmt: skip
        keep(_kept, kind, kernel)
    out = left.new_empty((tokens, columns))
    tiles_m = tokens // tile.block_m + experts
    grid = tiles_m * triton.cdiv(columns, tile.block_n), 1, 1
    kernel(grid, (left, right, offs.contiguous(), out), (tiles_m,))
    return out


grouped_mm = GroupedProduct(matmul.mm, matmul.bmm, tokens_by_expert)
