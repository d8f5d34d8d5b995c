"""Batch-invariant mm, addmm, baddbmm and bmm on the GPU.

One kernel: each program computes one tile of the result and adds up over K in blocks from 0, so a
row's bits depend on neither M nor its place in the call. No split of K depends on M; where K is
cut into segments at all (`configs.segment_k`), it is by a fixed length, and the segments' sums are
added in order, whether one program computes all of them or each has its own.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from detcheck.kernels.triton import configs, descriptors
from detcheck.kernels.triton.classes import classes, milliseconds
from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.launch import NUMERICS, on_device, processors

FLOATS = (torch.bfloat16, torch.float16, torch.float32)

_stock_linear = F.linear


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
    left, right, step_left, step_right, begin, end, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Sum over k in [begin, end), in blocks of BLOCK_K from 0: the one order there is.

    `left` (BLOCK_M, BLOCK_K) and `right` (BLOCK_K, BLOCK_N) point at column and row `begin`.
    Returns float32, (BLOCK_N, BLOCK_M) with WEIGHTS_FIRST, else (BLOCK_M, BLOCK_N).
    """
    if WEIGHTS_FIRST:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    ks = tl.arange(0, BLOCK_K)
    for k in range(begin, end, BLOCK_K):
        if EVEN_K:
            a = tl.load(left)
            b = tl.load(right)
        else:
            inside = ks < K - k
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        if WEIGHTS_FIRST:
            acc = tl.dot(tl.trans(b), tl.trans(a), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        left += step_left
        right += step_right
    return acc


@triton.jit
def _accumulate_segments(
    left, right, step_left, step_right, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SEGMENT_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """((0 + first segment) + second) + …, as the last of parallel programs adds them, in one loop.

    From 0, so that even the sign of a zero is the same. One loop keeps loads ahead of the sums
    across segments.
    """
    if WEIGHTS_FIRST:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    total = acc
    ks = tl.arange(0, BLOCK_K)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(left)
            b = tl.load(right)
        else:
            inside = ks < K - k
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        if WEIGHTS_FIRST:
            acc = tl.dot(tl.trans(b), tl.trans(a), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        if (k + BLOCK_K) % SEGMENT_K == 0:
            total += acc
            acc = tl.zeros_like(acc)
        left += step_left
        right += step_right
    return total + acc  # what is left after the last whole segment, or 0


@triton.jit(do_not_specialize=["M", "segment_size"])  # one binary for any number of rows
def product_kernel(
    left, right, bias, out, partial, arrived, M, N, K,
    stride_lb, stride_lm, stride_lk, stride_rb, stride_rk, stride_rn,
    stride_bb, stride_bm, stride_bn, stride_ob, stride_om, stride_on, segment_size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, SEGMENT_K: tl.constexpr, PARALLEL: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """out (B, M, N) = left (B, M, K) @ right (B, K, N) + bias, all by strides.

    Grid: (tiles * B, segments if PARALLEL else 1). With PARALLEL each program leaves the sum of
    its segment in `partial` (segments, B, M, N) float32, each `segment_size` long, and says in
    `arrived` (tiles * B,) int32, of zeros, that it has; the last to arrive adds them up in order.
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
        tl.debug_barrier()  # every thread has stored before one of them says so
        if tl.atomic_add(arrived + index, 1, sem="acq_rel") < tl.num_programs(1) - 1:
            return
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


def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) to (M, N), accumulated in float32; a row's bits do not depend on M.

    bfloat16, float16 and float32 (never as TF32), any strides; other dtypes run as stock.
    """
    if left.dtype not in FLOATS or right.dtype != left.dtype:
        return torch.mm(left, right, out=left.new_empty((left.shape[0], right.shape[1])))
    return _product(left[None], right[None], None)[0]


def addmm(
    bias: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    """beta * bias + alpha * (M, K) x (K, N) to (M, N); the bias is added before rounding."""
    if left.dtype not in FLOATS or beta != 1 or alpha != 1:
        scaled = mm(left, right) * alpha
        return scaled if beta == 0 else scaled + bias * beta
    return _product(left[None], right[None], bias)[0]


def bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N), each product as `mm` computes it."""
    if left.dtype not in FLOATS or right.dtype != left.dtype:
        shape = (left.shape[0], left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=left.new_empty(shape))
    return _product(left, right, None)


def baddbmm(
    bias: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    """beta * bias + alpha * (B, M, K) x (B, K, N) to (B, M, N)."""
    if left.dtype not in FLOATS or beta != 1 or alpha != 1:
        scaled = bmm(left, right) * alpha
        return scaled if beta == 0 else scaled + bias * beta
    return _product(left, right, bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(…, K) by the (N, K) weight of a linear layer to (…, N), without the way round by dispatch.

    A shortcut for inference. Where gradients are recorded, or autocast or somebody else watches,
    the stock decomposition reaches `mm` or `addmm` anyway.
    """
    watched = torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() > 0
    watched = watched or torch.is_autocast_enabled(x.device.type)
    if watched or x.dtype not in FLOATS or weight.dtype != x.dtype or x.dim() == 1:
        # Contiguous, or PyTorch adds the bias after rounding, in some batches and not in others.
        return _stock_linear(x if bias is None else x.contiguous(), weight, bias)
    rows = x.reshape(1, -1, x.shape[-1])
    return _product(rows, weight.t()[None], bias).view(*x.shape[:-1], weight.shape[0])


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(B, M, K) x (B, K, N) + bias, which broadcasts to (B, M, N)."""
    rows, inner = left.shape[1:]
    if rows == 0 or inner == 0 or right.shape[2] == 0 or left.shape[0] == 0:
        empty = left.new_zeros((left.shape[0], rows, right.shape[2]))
        return empty if bias is None else empty + bias
    if inner == 1 and bias is None:  # one product an entry: exact, as in rotary embeddings
        return left * right
    segment = configs.segment_k(right.shape[2], inner)

    def time(tile: Tile) -> float:
        return milliseconds(lambda: product(left, right, bias, tile, segment))

    tile = classes(left, right, product).tile(rows, time if left.is_cuda else None)
    return product(left, right, bias, tile, segment)


def product(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    tile: Tile,
    segment_k: int = 0,
    parallel: bool | None = None,
) -> torch.Tensor:
    """(B, M, K) x (B, K, N) + bias with a given tile, its sums over K cut every `segment_k`.

    `segment_k` is a multiple of the tile's BLOCK_K, or 0. `parallel` says whether segments are
    computed side by side, which changes no bit; by default where there are too few tiles
    to keep the device busy. Raises ValueError for a segment that is no multiple.
    """
    if tile.descriptors and not segment_k and descriptors.fits(left, right):
        return descriptors.product(left, right, bias, tile)
    if segment_k % tile.block_k:
        raise ValueError(f"segments of {segment_k} are not whole blocks of {tile.block_k}")
    batch, rows, inner = left.shape
    columns = right.shape[2]
    segments = triton.cdiv(inner, segment_k) if segment_k else 1
    tiles = batch * triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    if parallel is None:
        parallel = tiles < processors(left.device)
    parallel = parallel and segments > 1
    out = left.new_empty((batch, rows, columns))
    if bias is not None:
        bias = bias.expand(out.shape)
    with on_device(left):
        _launch_product(left, right, bias, out, tile, segment_k, tiles, segments if parallel else 1)
    return out


def _launch_product(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    tile: Tile,
    segment_k: int,
    tiles: int,
    segments: int,
) -> None:
    """Launch `product_kernel` into `out`; `segments` are computed side by side if more than 1."""
    batch, rows, inner = left.shape
    parallel = segments > 1
    partial = out.new_empty((segments, *out.shape), dtype=torch.float32) if parallel else out
    arrived = out.new_zeros(tiles, dtype=torch.int32) if parallel else out
    added = out if bias is None else bias
    product_kernel[(tiles, segments)](
        left, right, added, out, partial, arrived, rows, right.shape[2], inner,
        *_strides(left, batch), *_strides(right, batch), *_strides(added, batch),
        *_strides(out, batch), partial.stride(0) if parallel else 0,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
        WEIGHTS_FIRST=tile.weights_first,
        # One program's segments are the whole sum where there is one of them.
        SEGMENT_K=segment_k if segment_k < inner else 0,
        PARALLEL=parallel,
        EVEN_N=right.shape[2] % tile.block_n == 0,
        EVEN_K=inner % tile.block_k == 0,
        HAS_BIAS=bias is not None,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **NUMERICS,
    )  # fmt: skip


def _strides(x: torch.Tensor, batch: int) -> tuple[int, ...]:
    """Strides, those between the entries of a batch of one being 0.

    They grow with the rows, and would have another binary where they stop being multiples of 16.
    """
    return x.stride() if batch > 1 else (0, *x.stride()[1:])
