"""Batch-invariant mm, addmm, baddbmm and bmm on the GPU.

One kernel: each program computes one tile of the result and adds up over K in blocks from 0, so a
row's bits depend on neither M nor its place in the call. No split of K depends on M; where K is
cut into segments at all (`configs.segment_k`), it is by a fixed length, and the segments' sums are
added in order, whether one program computes all of them or each has its own.
"""

from __future__ import annotations

import torch
import triton
from torch.nn import functional as F

from detcheck.kernels.triton import configs, descriptors
from detcheck.kernels.triton.classes import classes, milliseconds
from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.launch import NUMERICS, on_device, processors
from detcheck.kernels.triton.matmul_kernels import product_kernel

FLOATS = (torch.bfloat16, torch.float16, torch.float32)

_stock_linear = F.linear


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
