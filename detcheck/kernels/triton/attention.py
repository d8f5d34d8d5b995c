"""Batch-invariant causal attention on the GPU, for packed requests and for padded batches.

What a query's result depends on is its own position, its own keys, and nothing else:

- keys are taken in blocks of BLOCK_N from position 0 of the request, and every SPLIT keys in a
  partial result of their own (1000 keys with splits of 256 are 256 + 256 + 256 + 232); partial
  results are merged in order. Splits have a fixed size, never a fixed count;
- one program may do all splits of a query in turn, or each split may have its own program
  (`parallel`, for long contexts with few queries): the arithmetic is the same function, so which
  of the two is chosen changes no bit, and may follow the load;
- queries are tiled by absolute position (positions 0 … 15, 16 … 31, …), whatever part of the
  tile a call has. So a decoded token meets the same blocks, masks and instructions as in a
  prefill of the whole, or of any chunk: `chunking` and `prefill-decode` hold too.

The heads that share a key-value head are rows of one tile (16 positions of 4 heads fill the 64
rows that `wgmma` computes at least), so keys are read once for all of them.

Lengths stay on the device: the grid is bounded from the shapes, and programs without work leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, sqrt

import torch
import triton

from detcheck.errors import UsageError
from detcheck.kernels.triton.attention_kernels import attention_kernel, merge_kernel
from detcheck.kernels.triton.launch import NUMERICS, on_device, processors

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
SPLIT = 512
"""Keys of one partial result. Starting point, not measured yet."""
TILE_ROWS = 64
"""Rows (positions by heads of a group) of a tile, in prefill and decoding alike."""
MAX_HEAD_DIM = 256
MERGE_ROWS = 4
"""Rows of the result that one program merges."""
LOG2_E = log2(2.718281828459045)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where requests lie in query (batch, heads, q, dim) and in keys (batch, kv_heads, k, dim).

    Packed: the batch is 1, and request i has queries [cu_q[i], cu_q[i+1]) and keys
    [cu_k[i], cu_k[i+1]). Padded: request i is entry i of the batch, its keys from starts[i] on.
    """

    requests: int
    cu_q: torch.Tensor | None = None
    """(requests + 1,) int32 or int64, packed only."""
    cu_k: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    """(requests,) keys of left padding, padded only; None where there is none."""
    max_k: int | None = None
    """Most keys of a request, where that is known without asking the device."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None = None,
    *,
    parallel: bool | None = None,
) -> torch.Tensor:
    """Causal attention of requests whose last query is their last key; (batch, q, heads, dim).

    query (batch, heads, q, dim), key and value (batch, kv_heads, k, dim); bfloat16, float16 or
    float32 (never as TF32); dim up to 256. Rows of padding are zero. `parallel` says whether
    splits get programs of their own, by default where tiles are few; it changes no bit. Raises
    UsageError for what the kernel does not take.
    """
    _check(query, key, value)
    batch, heads, q_size, dim = query.shape
    kv_heads, k_size = key.shape[1:3]
    out = query.new_zeros((batch, q_size, heads, dim))
    if out.numel() == 0 or k_size == 0:
        return out
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    shape = _shape(heads // kv_heads, dim, query.dtype)
    packed = layout.cu_q is not None
    slots = _slots(layout, q_size, shape.rows // shape.group_rows)
    splits = triton.cdiv(layout.max_k or k_size, SPLIT)
    if parallel is None:
        parallel = splits > 1 and slots * kv_heads < 2 * processors(query.device)
    parallel = parallel and splits > 1
    rows = batch * q_size
    best, total, acc = _workspace(out, splits if parallel else 0)
    with on_device(query):
        attention_kernel[(slots, kv_heads, splits if parallel else 1)](
            query, key, value, out, best, total, acc,
            layout.cu_q if packed else query, layout.cu_k if packed else query,
            query if layout.starts is None else layout.starts,
            layout.requests, q_size, k_size, rows,
            (1 / sqrt(dim) if scaling is None else scaling) * LOG2_E,
            *_strides(query), *_strides(key), *_strides(value),
            GROUP=heads // kv_heads, GROUP_ROWS=shape.group_rows, DIM=dim, BLOCK_D=shape.block_d,
            ROWS=shape.rows, BLOCK_N=shape.block_n, SPLIT_BLOCKS=SPLIT // shape.block_n,
            PARALLEL=parallel, PACKED=packed, HAS_STARTS=layout.starts is not None,
            num_warps=shape.num_warps, num_stages=shape.num_stages, **NUMERICS,
        )  # fmt: skip
        if parallel:
            merge_kernel[(triton.cdiv(rows * heads, MERGE_ROWS),)](
                best, total, acc, out, rows * heads, splits,
                DIM=dim, BLOCK_D=shape.block_d, ROWS=MERGE_ROWS, num_warps=4, **NUMERICS,
            )  # fmt: skip
    return out


@dataclass(frozen=True, slots=True)
class Shape:
    """Compile-time sizes of the kernel: functions of the model's heads and the dtype alone."""

    rows: int
    group_rows: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


def _shape(group: int, dim: int, dtype: torch.dtype) -> Shape:
    """Sizes that fit a processor's registers without spilling, on sm_80 and sm_90.

    Tiles start and end within one split, since SPLIT is a multiple of a tile's positions.
    """
    group_rows = triton.next_power_of_2(group)
    block_d = max(16, triton.next_power_of_2(dim))
    if dtype == torch.float32:
        # Without the matrix unit operands are held in registers, so the tile is small.
        return Shape(max(16, group_rows), group_rows, 16, block_d, 8 if block_d > 64 else 4, 1)
    rows = max(TILE_ROWS, group_rows)
    if block_d <= 64:
        return Shape(rows, group_rows, 64, block_d, 4, 3)
    if block_d <= 128:
        return Shape(rows, group_rows, 64, block_d, 8, 2)
    return Shape(rows, group_rows, 16, block_d, 8, 2)


def _slots(layout: Layout, q_size: int, block_q: int) -> int:
    """Programs along the first axis: a bound on the tiles, known without asking the device."""
    if layout.cu_q is not None:
        return q_size // block_q + 2 * layout.requests
    return layout.requests * (triton.cdiv(q_size, block_q) + 1)


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    """Strides of (batch, heads, length); 0 between the entries of a batch of one."""
    return x.stride()[:3] if len(x) > 1 else (0, *x.stride()[1:3])


def _workspace(out: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Partial results' (splits, batch, q, heads[, dim]) tensors; stand-ins where splits is 0."""
    if splits == 0:
        return out, out, out
    shape = (splits, *out.shape[:3])
    best = out.new_full(shape, -torch.inf, dtype=torch.float32)
    total = out.new_empty(shape, dtype=torch.float32)
    return best, total, out.new_empty((*shape, out.shape[3]), dtype=torch.float32)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    problem = None
    if query.dtype not in FLOATS or not query.dtype == key.dtype == value.dtype:
        problem = f"tensors of {query.dtype}, {key.dtype} and {value.dtype}"
    elif query.shape[3] > MAX_HEAD_DIM or not query.shape[3] == key.shape[3] == value.shape[3]:
        problem = f"heads of {query.shape[3]}, {key.shape[3]} and {value.shape[3]} entries"
    elif query.shape[1] % key.shape[1]:
        problem = f"{query.shape[1]} heads over {key.shape[1]} key-value heads"
    if problem is not None:
        raise UsageError(
            f"Batch-invariant attention on the GPU does not take {problem}: it takes equal dtypes "
            f"(bfloat16, float16, float32) and head sizes up to {MAX_HEAD_DIM}."
        )
