"""Rotary positions of queries and keys together, in one launch.

The bits are those of the kernels that PyTorch launches one after another: two products and a sum,
each rounded. That is not assumed: `fused/proofs.py` compares them on the GPU before they serve.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.launch import NUMERICS, Repeated

ENTRIES = 512
"""Pairs of entries that a program turns."""
NUM_WARPS = 4
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MULTIPLE = 16


@triton.jit
def _turn(
    x, out, cos, sin, first, heads, half, stride, out_stride,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turn BLOCK_H heads of one token from head `first` on; all addresses are those of the token.

    x1 * cos - x2 * sin and x2 * cos + x1 * sin of the halves of each head, in float32.

    Triton 3.6 compiles `-x` to `0 - x`, whose zero has another sign.
    """
    dtype = out.dtype.element_ty
    entries = tl.arange(0, BLOCK_D)
    head = first + tl.arange(0, BLOCK_H)
    inside = entries < half
    cos_1 = tl.load(cos + entries, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_2 = tl.load(cos + half + entries, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_1 = tl.load(sin + entries, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_2 = tl.load(sin + half + entries, mask=inside, other=0.0).to(tl.float32)[None, :]
    inside = (head < heads)[:, None] & inside[None, :]
    x += head[:, None] * stride + entries[None, :]
    out += head[:, None] * out_stride + entries[None, :]
    x_1 = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    x_2 = tl.load(x + half, mask=inside, other=0.0).to(tl.float32)
    straight_1 = (x_1 * cos_1).to(dtype).to(tl.float32)
    straight_2 = (x_2 * cos_2).to(dtype).to(tl.float32)
    across_1 = (x_2 * -1.0 * sin_1).to(dtype).to(tl.float32)
    across_2 = (x_1 * sin_2).to(dtype).to(tl.float32)
    tl.store(out, (straight_1 + across_1).to(dtype), mask=inside)
    tl.store(out + half, (straight_2 + across_2).to(dtype), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def rotary_kernel(
    q, k, cos, sin, q_out, k_out, tokens, q_heads, k_heads, half,
    q_row, q_head, q_token, k_row, k_head, k_token, cos_row, cos_token,
    q_out_row, q_out_head, q_out_token, k_out_row, k_out_head, k_out_token,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turn q (rows, q_heads, tokens, 2 * half) and k (rows, k_heads, tokens, 2 * half).

    cos and sin (rows, tokens, 2 * half) have the same strides. A program turns BLOCK_H heads of one
    token. Grid: (rows * tokens, blocks of query heads and of key heads).
    """
    row = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    block = tl.program_id(1)
    q_blocks = tl.cdiv(q_heads, BLOCK_H)
    cos += row * cos_row + token * cos_token
    sin += row * cos_row + token * cos_token
    if block < q_blocks:
        q += row * q_row + token * q_token
        q_out += row * q_out_row + token * q_out_token
        first = block * BLOCK_H
        _turn(q, q_out, cos, sin, first, q_heads, half, q_head, q_out_head, BLOCK_H, BLOCK_D)
    else:
        k += row * k_row + token * k_token
        k_out += row * k_out_row + token * k_out_token
        first = (block - q_blocks) * BLOCK_H
        _turn(k, k_out, cos, sin, first, k_heads, half, k_head, k_out_head, BLOCK_H, BLOCK_D)


def serves(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor) -> bool:
    """True if there is a kernel for these: q and k (rows, heads, tokens, dim), of an even dim, with
    positions (rows or 1, tokens, dim), all of one dtype and device.

    Strides must be multiples of 16, so that one binary serves all tensors of a kind.
    """
    if q.dtype not in FLOATS or (q.dim(), k.dim(), cos.dim()) != (4, 4, 3):
        return False
    rows, _, tokens, dim = q.shape
    alike = all(x.dtype == q.dtype and x.device == q.device for x in (k, cos))
    fit = (k.shape[0], *k.shape[2:]) == (rows, tokens, dim) and cos.shape[1:] == (tokens, dim)
    if not alike or not fit or cos.shape[0] not in (1, rows) or dim % 2 or not q.numel():
        return False
    strides = (stride for x in (q, k, cos) for stride in _strides(x))
    unit = all(x.stride(-1) == 1 for x in (q, k, cos))
    return unit and k.numel() > 0 and not any(stride % MULTIPLE for stride in strides)


class Rotation:
    """The kernel for queries, keys and positions of one shape and layout, ready to launch."""

    __slots__ = ("_grid", "_kernel", "_rooms", "_tokens")

    def __init__(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor):
        """For tensors like `q` (rows, heads, tokens, dim), `k` and `cos` (rows or 1, tokens, dim).

        Entries of a head lie side by side. The sines have the shape and the strides of `cos`.
        """
        rows, q_heads, tokens, dim = q.shape
        k_heads = k.shape[1]
        block_d = triton.next_power_of_2(dim // 2)
        block_h = max(1, min(ENTRIES // block_d, triton.next_power_of_2(max(q_heads, k_heads))))
        blocks = triton.cdiv(q_heads, block_h) + triton.cdiv(k_heads, block_h)
        outs = [torch.empty_like(x, device="meta") for x in (q, k)]
        strides = [stride for x in (q, k, cos, *outs) for stride in _strides(x)]
        named = {"BLOCK_H": block_h, "BLOCK_D": block_d, "num_warps": NUM_WARPS, **NUMERICS}
        self._kernel = Repeated(rotary_kernel, (q_heads, k_heads, dim // 2, *strides), named)
        self._grid = rows * tokens, blocks, 1
        self._tokens = (tokens,)
        self._rooms = (_room(q, outs[0]), _room(k, outs[1]))

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The turned queries and keys, in the order of memory that `empty_like` gives them."""
        q_out, k_out = self._rooms[0](), self._rooms[1]()
        self._kernel(self._grid, (q, k, cos, sin, q_out, k_out), self._tokens)
        return q_out, k_out


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    """All but the last; 0 along dimensions of size 1, whose strides may be any."""
    return tuple(0 if size == 1 else stride
                 for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True))  # fmt: skip


def _room(like: torch.Tensor, out: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that allocates results with the strides of `out`."""
    return partial(
        torch.empty_strided, out.shape, out.stride(), dtype=like.dtype, device=like.device
    )
