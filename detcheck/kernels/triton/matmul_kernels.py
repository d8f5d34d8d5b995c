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
def _add_block(
    acc, left, right, remaining, BLOCK_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """`acc` plus the product of one block of K; `remaining` entries of K are left, it included."""
    if EVEN_K:
        a = tl.load(left)
        b = tl.load(right)
    else:
        inside = tl.arange(0, BLOCK_K) < remaining
        a = tl.load(left, mask=inside[None, :], other=0.0)
        b = tl.load(right, mask=inside[:, None], other=0.0)
    if WEIGHTS_FIRST:
        return tl.dot(tl.trans(b), tl.trans(a), acc, input_precision="ieee")
    else:  # noqa: RET505  (Triton compiles one of the two)
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _accumulate(
    left, right, step_left, step_right, begin, end, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Sum over k in [begin, end), in blocks of BLOCK_K in growing order.

    `left` (BLOCK_M, BLOCK_K) and `right` (BLOCK_K, BLOCK_N) point at column and row `begin`.
    Returns float32, (BLOCK_N, BLOCK_M) with WEIGHTS_FIRST, else (BLOCK_M, BLOCK_N).
    """
    if WEIGHTS_FIRST:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(begin, end, BLOCK_K):
        acc = _add_block(acc, left, right, K - k, BLOCK_K, WEIGHTS_FIRST, EVEN_K)
        left += step_left
        right += step_right
    return acc


@triton.jit
def _accumulate_segments(
    left, right, step_left, step_right, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SEGMENT_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """((0 + first segment) + second) + …, in the order in which parallel programs add them.

    The sum starts from 0, so that even the sign of a zero is the same. There is one loop over all
    segments, so that loads run ahead of the sums across their borders.
    """
    if WEIGHTS_FIRST:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    total = acc
    for k in range(0, K, BLOCK_K):
        acc = _add_block(acc, left, right, K - k, BLOCK_K, WEIGHTS_FIRST, EVEN_K)
        if (k + BLOCK_K) % SEGMENT_K == 0:
            total += acc
            acc = tl.zeros_like(acc)
        left += step_left
        right += step_right
    return total + acc  # what is left after the last whole segment, or 0


@triton.jit(do_not_specialize=["M", "segment_size"])  # one binary for any number of rows
def product_kernel(
    left, right, bias, out, partial, arrived, M, segment_size, N, K,
    stride_lb, stride_lm, stride_lk, stride_rb, stride_rk, stride_rn,
    stride_bb, stride_bm, stride_bn, stride_ob, stride_om, stride_on,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, SEGMENT_K: tl.constexpr, PARALLEL: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """out (B, M, N) = left (B, M, K) @ right (B, K, N) + bias, all by strides.

    Grid: (tiles * B, segments if PARALLEL else 1). With PARALLEL each program stores the sum of
    its segment in `partial` (segments, B, M, N) float32, each `segment_size` entries long. It then
    counts itself in `arrived` (tiles * B,) int32, which holds zeros before and after the launch.
    The last program of a tile to arrive adds the segments up in order.
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
    segment = tl.program_id(1)
    begin = segment * SEGMENT_K
    left += batch * stride_lb + row.to(tl.int64) * stride_lm + begin.to(tl.int64) * stride_lk
    right += batch * stride_rb + column.to(tl.int64) * stride_rn + begin.to(tl.int64) * stride_rk
    left_tile = left + (safe_rows[:, None] * stride_lm + ks[None, :] * stride_lk)
    right_tile = right + (ks[:, None] * stride_rk + safe_columns[None, :] * stride_rn)
    step_left = BLOCK_K * stride_lk
    step_right = BLOCK_K * stride_rk
    if PARALLEL or SEGMENT_K == 0:
        end = min(K, begin + SEGMENT_K) if PARALLEL else K
        acc = _accumulate(
            left_tile, right_tile, step_left, step_right, begin, end, K,
            BLOCK_M, BLOCK_N, BLOCK_K, WEIGHTS_FIRST, EVEN_K,
        )  # fmt: skip
    else:
        acc = _accumulate_segments(
            left_tile, right_tile, step_left, step_right, K,
            BLOCK_M, BLOCK_N, BLOCK_K, SEGMENT_K, WEIGHTS_FIRST, EVEN_K,
        )  # fmt: skip
    if WEIGHTS_FIRST:
        acc = tl.trans(acc)
    inside = (rows < M - row)[:, None] & (columns < N - column)[None, :]
    if PARALLEL:
        start = (batch * M + row) * N + column
        places = partial + start + (rows.to(tl.int64)[:, None] * N + columns[None, :])
        segment_size = tl.cast(segment_size, tl.int64)
        tl.store(places + segment * segment_size, acc, mask=inside)
        tl.debug_barrier()  # every thread has stored before one of them counts
        if tl.atomic_add(arrived + index, 1, sem="acq_rel") < tl.num_programs(1) - 1:
            return
        tl.store(arrived + index, 0)  # for the next launch on this stream
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for _ in range(tl.num_programs(1)):
            acc += tl.load(places, mask=inside, other=0.0, cache_modifier=".cg")
            places += segment_size
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
