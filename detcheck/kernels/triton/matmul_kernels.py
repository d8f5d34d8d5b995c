"""The kernel of `matmul.py`: one tile of the product, its sum over K in one fixed order."""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile_origin(index, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(row, column) of a tile's first entry: GROUP_M tiles of rows share a sweep over columns."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = index // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    within = index % (GROUP_M * tiles_n)
    return (first + within % height) * BLOCK_M, (within // height) * BLOCK_N


@triton.jit
def _accumulate(
    left, right, step_left, step_right, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Sum over K, in blocks of BLOCK_K in growing order.

    `left` (BLOCK_M, BLOCK_K) and `right` (BLOCK_K, BLOCK_N) point at the first block.
    Returns float32, (BLOCK_N, BLOCK_M) with WEIGHTS_FIRST, else (BLOCK_M, BLOCK_N).
    """
    if WEIGHTS_FIRST:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(left)
            b = tl.load(right)
        else:
            inside = tl.arange(0, BLOCK_K) < K - k
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        if WEIGHTS_FIRST:
            acc = tl.dot(tl.trans(b), tl.trans(a), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        left += step_left
        right += step_right
    return acc


@triton.jit(do_not_specialize=["M"])  # one binary for any number of rows
def product_kernel(
    left, right, bias, out, M, N, K,
    stride_lb, stride_lm, stride_lk, stride_rb, stride_rk, stride_rn,
    stride_bb, stride_bm, stride_bn, stride_ob, stride_om, stride_on,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """out (B, M, N) = left (B, M, K) @ right (B, K, N) + bias, all by strides.

    Grid: (tiles * B,).
    """
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    index = tl.program_id(0)
    batch = (index // tiles).to(tl.int64)
    row, column = _tile_origin(index % tiles, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # Rows and columns past the edge read the tile's first one: no mask in the loop, never stored.
    safe_rows = tl.where(rows < M - row, rows, 0)
    safe_columns = columns if EVEN_N else tl.where(columns < N - column, columns, 0)
    left += batch * stride_lb + row.to(tl.int64) * stride_lm
    right += batch * stride_rb + column.to(tl.int64) * stride_rn
    acc = _accumulate(
        left + (safe_rows[:, None] * stride_lm + ks[None, :] * stride_lk),
        right + (ks[:, None] * stride_rk + safe_columns[None, :] * stride_rn),
        BLOCK_K * stride_lk, BLOCK_K * stride_rk, K,
        BLOCK_M, BLOCK_N, BLOCK_K, WEIGHTS_FIRST, EVEN_K,
    )  # fmt: skip
    if WEIGHTS_FIRST:
        acc = tl.trans(acc)
    inside = (rows < M - row)[:, None] & (columns < N - column)[None, :]
    if HAS_BIAS:
        bias += batch * stride_bb + row.to(tl.int64) * stride_bm + column.to(tl.int64) * stride_bn
        added = tl.load(
            bias + rows[:, None] * stride_bm + columns[None, :] * stride_bn, mask=inside, other=0.0
        )
        acc += added.to(tl.float32)
    out += batch * stride_ob + row.to(tl.int64) * stride_om + column.to(tl.int64) * stride_on
    tl.store(
        out + rows[:, None] * stride_om + columns[None, :] * stride_on,
        acc.to(out.dtype.element_ty),
        mask=inside,
    )
