"""The matrix product through tensor descriptors: Hopper's copy unit (TMA) moves the tiles.

It computes the same sums in the same order as `product_kernel`. The right-hand side must be the
transposed weight of a linear layer, and the copy unit must be able to take the addresses and
strides. The loop needs no mask, because the copy unit reads zeros past an edge. With PERSISTENT a
program goes on to its next tile while the results of the last one are being stored.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.launch import (
    ALIGNMENT_BYTES,
    NUMERICS,
    on_device,
    processors,
    start,
)


@triton.jit
def _one_tile(
    left, right, bias, out, index, M, N, K, stride_bm, stride_bn, stride_om,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Compute and store tile `index`; GROUP_M tiles of rows share a sweep over the columns."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = index // (GROUP_M * tiles_n)
    height = min(tiles_m - group * GROUP_M, GROUP_M)
    within = index % (GROUP_M * tiles_n)
    row = (group * GROUP_M + within % height) * BLOCK_M
    column = (within // height) * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        acc = tl.dot(left.load([row, k]), right.load([column, k]).T, acc, input_precision="ieee")
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    if HAS_BIAS:
        places = rows.to(tl.int64)[:, None] * stride_bm + columns[None, :] * stride_bn
        acc += tl.load(bias + places, mask=inside, other=0.0).to(tl.float32)
    places = rows.to(tl.int64)[:, None] * stride_om + columns[None, :]
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])  # one binary for any number of rows
def descriptor_kernel(
    left, right, bias, out, M, N, K, stride_bm, stride_bn, stride_om,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PERSISTENT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """out (M, N) = left (M, K) @ right (N, K) transposed + bias; `left` and `right` descriptors.

    Grid: (tiles,), or with PERSISTENT as many programs as share the tiles.
    """
    if PERSISTENT:
        tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
        for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _one_tile(
                left, right, bias, out, index, M, N, K, stride_bm, stride_bn, stride_om,
                BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, HAS_BIAS,
            )  # fmt: skip
    else:
        _one_tile(
            left, right, bias, out, tl.program_id(0), M, N, K, stride_bm, stride_bn, stride_om,
            BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, HAS_BIAS,
        )  # fmt: skip


def fits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True if the copy unit can read (B, M, K) and (B, K, N) as they lie in memory."""
    return (
        len(left) == 1
        and left.stride(2) == 1
        and right.stride(1) == 1
        and _is_aligned(left.stride(1), left)
        and _is_aligned(right.stride(2), right)
    )


def _is_aligned(stride: int, x: torch.Tensor) -> bool:
    step = stride * x.element_size()
    return step > 0 and step % ALIGNMENT_BYTES == 0 and x.data_ptr() % ALIGNMENT_BYTES == 0


def product(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """(1, M, K) x (1, K, N) + bias (1, M, N) with a given tile; `fits` must hold."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    _, rows, inner = left.shape
    columns = right.shape[2]
    out = left.new_empty((1, rows, columns))
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    programs = min(tiles, processors(left.device)) if tile.persistent else tiles
    added = out if bias is None else bias.expand(out.shape)
    with on_device(left):
        start(
            descriptor_kernel, (programs, 1, 1),
            TensorDescriptor.from_tensor(left[0], [tile.block_m, tile.block_k]),
            TensorDescriptor.from_tensor(right[0].t(), [tile.block_n, tile.block_k]),
            added, out, rows, columns, inner, *added.stride()[1:], out.stride(1),
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            GROUP_M=tile.group_m, PERSISTENT=tile.persistent, HAS_BIAS=bias is not None,
            num_warps=tile.num_warps, num_stages=tile.num_stages, **NUMERICS,
        )  # fmt: skip
    return out
