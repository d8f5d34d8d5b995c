"""Sums that run from the first term to the last, on the GPU: see `cpu/in_order.py`.

A model's own attention code sums over all keys of a batch, masked ones included. Term k is added
to the sum of terms 0 to k-1, so the exact zeros of masked keys change nothing, wherever they are.
The matrix unit adds in an order of its own, so these products use multiply-adds of float32.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.launch import NUMERICS, on_device, start

BLOCK_M, BLOCK_N = 32, 64
BLOCK_ROWS = 128
NUM_WARPS = 4


@triton.jit(do_not_specialize=["M", "N", "K"])
def ordered_product_kernel(
    left, right, out, M, N, K, stride_lb, stride_lm, stride_lk, stride_rb, stride_rk, stride_rn,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out (B, M, N) = left (B, M, K) @ right (B, K, N). Grid: (tiles * B,)."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    rows = (tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    left += batch * stride_lb + rows * stride_lm
    right += batch * stride_rb + columns * stride_rn
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for _ in range(K):
        a = tl.load(left, mask=rows < M, other=0.0).to(ACC)
        b = tl.load(right, mask=columns < N, other=0.0).to(ACC)
        acc = tl.fma(a[:, None], b[None, :], acc)
        left += stride_lk
        right += stride_rk
    places = (batch * M + rows)[:, None] * N + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "length"])
def ordered_softmax_kernel(
    x, out, count, length, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out = softmax of x's rows, both (count, length) and contiguous; a row a thread."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < count
    x += rows * length
    out += rows * length
    top = tl.full((BLOCK,), -float("inf"), dtype=ACC)
    for k in range(length):
        entry = tl.load(x + k, mask=inside, other=0.0).to(ACC)
        top = tl.maximum(top, entry, propagate_nan=tl.PropagateNan.ALL)
    total = tl.zeros((BLOCK,), dtype=ACC)
    for k in range(length):
        total += tl.exp(tl.load(x + k, mask=inside, other=0.0).to(ACC) - top)
    for k in range(length):
        share = tl.exp(tl.load(x + k, mask=inside, other=0.0).to(ACC) - top) / total
        tl.store(out + k, share.to(out.dtype.element_ty), mask=inside)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N); summed in float32 (float64 for float64), any strides."""
    batch, rows, inner = left.shape
    columns = right.shape[2]
    out = left.new_empty((batch, rows, columns))
    if out.numel() == 0 or inner == 0:
        return out.zero_()
    tiles = triton.cdiv(rows, BLOCK_M) * triton.cdiv(columns, BLOCK_N)
    with on_device(left):
        start(
            ordered_product_kernel, (tiles * batch, 1, 1), left, right, out, rows, columns, inner,
            *left.stride(), *right.stride(), ACC=_accumulator(left), BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N, num_warps=NUM_WARPS, **NUMERICS,
        )  # fmt: skip
    return out


def softmax(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Softmax over the last dim, without gradients; the result's dtype is that of `x` by default.

    Entries whose exponential is zero, such as masked keys, do not change the others.
    """
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype or x.dtype)
    if x.numel() == 0:
        return out
    count = x.numel() // x.shape[-1]
    with on_device(x):
        start(
            ordered_softmax_kernel, (triton.cdiv(count, BLOCK_ROWS), 1, 1), x, out, count,
            x.shape[-1], ACC=_accumulator(x), BLOCK=BLOCK_ROWS, num_warps=NUM_WARPS, **NUMERICS,
        )  # fmt: skip
    return out


class Softmax(torch.autograd.Function):
    """`softmax` with its gradients, whatever the mode overrides."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = softmax(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (out,) = ctx.saved_tensors
        return out * (grad - (grad * out).sum(-1, keepdim=True))


def _accumulator(x: torch.Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
