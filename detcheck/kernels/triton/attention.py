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

# ruff: noqa: N803, N806  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from dataclasses import dataclass
from math import log2, sqrt
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from detcheck.errors import UsageError
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


@triton.jit
def _request(
    slot, cu_q, cu_k, starts, requests, q_size, k_size,
    BLOCK_Q: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """Which request a slot serves: (index, first query, queries, first key, keys, tile).

    Packed requests have slots for as many tiles as their queries can touch, one more than they
    fill: request i starts at slot cu_q[i] // BLOCK_Q + 2 * i.
    """
    if PACKED:
        low = 0
        high = requests - 1
        while low < high:
            middle = (low + high + 1) // 2
            if tl.load(cu_q + middle).to(tl.int32) // BLOCK_Q + 2 * middle <= slot:
                low = middle
            else:
                high = middle - 1
        q_first = tl.load(cu_q + low).to(tl.int32)
        queries = tl.load(cu_q + low + 1).to(tl.int32) - q_first
        k_first = tl.load(cu_k + low).to(tl.int32)
        keys = tl.load(cu_k + low + 1).to(tl.int32) - k_first
        tile = slot - q_first // BLOCK_Q - 2 * low
    else:
        tiles = (q_size + BLOCK_Q - 1) // BLOCK_Q + 1
        low = slot // tiles
        tile = slot % tiles
        k_first = tl.load(starts + low).to(tl.int32) if HAS_STARTS else 0
        # Queries that are padding themselves are left out.
        q_first = tl.maximum(k_first - (k_size - q_size), 0)
        queries = q_size - q_first
        keys = k_size - k_first
    return low, q_first, queries, k_first, keys, tile


@triton.jit
def _block(
    best, total, acc, q, keys, values, block, k_len, positions, dims_inside, scale,
    stride_kn, stride_vn, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into (largest score, sum of weights, weighted sum of values).

    `best` and `total` (rows,), `acc` (rows, dim), all float32; scores are in powers of 2.
    """
    within = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    at = block * BLOCK_N + within
    first = tl.cast(block * BLOCK_N, tl.int64)  # 64 bits once a block, not once an entry
    # Keys past the end read the last one: finite, and their weight is zero.
    safe = tl.minimum(within, k_len - 1 - block * BLOCK_N)
    key_places = keys + first * stride_kn + (safe[None, :] * stride_kn + dims[:, None])
    value_places = values + first * stride_vn + (safe[:, None] * stride_vn + dims[None, :])
    if EVEN_D:
        k = tl.load(key_places)
        v = tl.load(value_places)
    else:
        k = tl.load(key_places, mask=dims_inside[:, None], other=0.0)
        v = tl.load(value_places, mask=dims_inside[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision="ieee")
    scores = tl.where(at[None, :] <= positions[:, None], scores, -float("inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
    # The one fused multiply-add is asked for by name; the compiler makes none of its own.
    weights = tl.exp2(tl.fma(scores, scale, -new_best[:, None]))
    shrink = tl.exp2(best - new_best)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _split(
    q, keys, values, first, last, k_len, positions, dims_inside, scale, stride_kn, stride_vn,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """Partial result over blocks [first, last): (rows,), (rows,), (rows, dim)."""
    best = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    for block in range(first, last):
        best, total, acc = _block(
            best, total, acc, q, keys, values, block, k_len, positions, dims_inside, scale,
            stride_kn, stride_vn, BLOCK_N, BLOCK_D, EVEN_D,
        )  # fmt: skip
    return best, total, acc


@triton.jit
def _merged(best, total, acc, part_best, part_total, part_acc):
    """Two partial results as one: (rows,), (rows,), (rows, dim) each."""
    top = tl.maximum(best, part_best)
    shrink = tl.exp2(best - top)
    part_shrink = tl.exp2(part_best - top)
    total = total * shrink + part_total * part_shrink
    acc = acc * shrink[:, None] + part_acc * part_shrink[:, None]
    return top, total, acc


# One binary for any load: what grows with it is not compiled in.
@triton.jit(do_not_specialize=["requests", "q_size", "k_size", "out_rows"])
def attention_kernel(
    query, key, value, out, partial_best, partial_total, partial_acc, cu_q, cu_k, starts,
    requests, q_size, k_size, out_rows, scale,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_BLOCKS: tl.constexpr,
    PARALLEL: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one key-value head.

    Grid: (slots, kv_heads, splits if PARALLEL else 1). `out` is (out_rows, heads, DIM). With
    PARALLEL, partial results go to `partial_acc` (splits, out_rows, heads, DIM), `partial_best`
    and `partial_total` (splits, out_rows, heads); `merge_kernel` makes one of them.
    """
    BLOCK_Q: tl.constexpr = ROWS // GROUP_ROWS
    EVEN_D: tl.constexpr = DIM == BLOCK_D
    index, q_first, queries, k_first, keys, tile = _request(
        tl.program_id(0), cu_q, cu_k, starts, requests, q_size, k_size,
        BLOCK_Q, PACKED, HAS_STARTS,
    )  # fmt: skip
    past = keys - queries
    tile_start = (past // BLOCK_Q + tile) * BLOCK_Q  # a position, a multiple of BLOCK_Q
    if tile_start >= keys:
        return
    kv_head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    positions = tile_start + rows // GROUP_ROWS
    heads = kv_head * GROUP + rows % GROUP_ROWS
    valid = (positions >= past) & (positions < keys) & (rows % GROUP_ROWS < GROUP)
    dims = tl.arange(0, BLOCK_D)
    dims_inside = dims < DIM
    entry = 0 if PACKED else index
    entry64 = tl.cast(entry, tl.int64)
    in_query = (q_first + positions - past).to(tl.int64)
    q = tl.load(
        query + entry64 * stride_qb
        + (heads.to(tl.int64) * stride_qh + in_query * stride_qn)[:, None] + dims[None, :],
        mask=valid[:, None] & dims_inside[None, :], other=0.0,
    )  # fmt: skip
    k_first = tl.cast(k_first, tl.int64)
    keys_at = key + entry64 * stride_kb + kv_head.to(tl.int64) * stride_kh + k_first * stride_kn
    values_at = value + entry64 * stride_vb + kv_head.to(tl.int64) * stride_vh + k_first * stride_vn
    # Blocks after a row's own position change none of its bits: weights of 0, and factors of 1.
    end = tl.minimum(tile_start + BLOCK_Q, keys)
    blocks = (end + BLOCK_N - 1) // BLOCK_N
    splits = (blocks + SPLIT_BLOCKS - 1) // SPLIT_BLOCKS
    out_row = in_query if PACKED else in_query + entry64 * q_size
    places = out_row * (tl.num_programs(1) * GROUP) + heads
    if PARALLEL:
        split = tl.program_id(2)
        if split >= splits:
            return
        places += split.to(tl.int64) * out_rows * (tl.num_programs(1) * GROUP)
        best, total, acc = _split(
            q, keys_at, values_at, split * SPLIT_BLOCKS,
            tl.minimum((split + 1) * SPLIT_BLOCKS, blocks), keys, positions, dims_inside,
            scale, stride_kn, stride_vn, ROWS, BLOCK_N, BLOCK_D, EVEN_D,
        )  # fmt: skip
        tl.store(partial_best + places, best, mask=valid)
        tl.store(partial_total + places, total, mask=valid)
        tl.store(
            partial_acc + places[:, None] * DIM + dims[None, :], acc,
            mask=valid[:, None] & dims_inside[None, :],
        )  # fmt: skip
    else:
        best = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
        total = tl.zeros((ROWS,), dtype=tl.float32)
        acc = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
        for split in range(splits):
            part_best, part_total, part_acc = _split(
                q, keys_at, values_at, split * SPLIT_BLOCKS,
                tl.minimum((split + 1) * SPLIT_BLOCKS, blocks), keys, positions, dims_inside,
                scale, stride_kn, stride_vn, ROWS, BLOCK_N, BLOCK_D, EVEN_D,
            )  # fmt: skip
            best, total, acc = _merged(best, total, acc, part_best, part_total, part_acc)
        tl.store(
            out + places[:, None] * DIM + dims[None, :],
            (acc / total[:, None]).to(out.dtype.element_ty),
            mask=valid[:, None] & dims_inside[None, :],
        )


@triton.jit(do_not_specialize=["count", "splits"])
def merge_kernel(
    partial_best, partial_total, partial_acc, out, count, splits,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out (count, DIM) from partial results (splits, count, …), merged in the order of the splits.

    Splits that a row does not reach are marked by a largest score of minus infinity. `count` is
    rows by heads. Grid: (count / ROWS,).
    """
    places = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = places < count
    dims = tl.arange(0, BLOCK_D)
    entries = inside[:, None] & (dims < DIM)[None, :]
    best = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    at = places
    for split in range(splits):
        part_best = tl.load(partial_best + at, mask=inside, other=0.0)
        reached = inside & (part_best > -float("inf"))
        part_total = tl.load(partial_total + at, mask=reached, other=0.0)
        part_acc = tl.load(
            partial_acc + at[:, None] * DIM + dims[None, :],
            mask=entries & reached[:, None], other=0.0,
        )  # fmt: skip
        # Rows that no split reaches (padding) stay at 0 / 1.
        part_best = tl.where(reached | (split > 0), part_best, 0.0)
        best, total, acc = _merged(best, total, acc, part_best, part_total, part_acc)
        at += count
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + places[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty), mask=entries
    )


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


class _Differentiable(torch.autograd.Function):
    """Forward by the kernel; backward by the stock formula, which is right but not invariant."""

    @staticmethod
    def forward(ctx, query, key, value, layout, scaling, mask):
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = scaling
        return attention(query, key, value, layout, scaling)

    @staticmethod
    def backward(ctx, grad):
        *inputs, mask = ctx.saved_tensors
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in inputs)
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=_causal(query, key) if mask is None else mask,
                scale=ctx.scaling, enable_gqa=query.shape[1] != key.shape[1],
            )  # fmt: skip
            grads = torch.autograd.grad(out, (query, key, value), grad.transpose(1, 2))
        return *grads, None, None, None


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor | None,
    scaling: float | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of a batch padded on the left by `starts` (batch,) keys, with gradients.

    `mask` is what the model passed, for the backward pass.
    """
    layout = Layout(query.shape[0], starts=starts, max_k=key.shape[2])
    if _needs_gradients(query, key, value):
        out: torch.Tensor = _Differentiable.apply(query, key, value, layout, scaling, mask)
        return out
    return attention(query, key, value, layout, scaling)


def _needs_gradients(*inputs: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Attention of requests packed along q, bounded by transformers' `cu_seq_lens_q` and `_k`.

    With gradients, as a trainer has them of several sequences in one row.
    """
    cu_q, cu_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    longest = kwargs.get("max_length_k", kwargs.get("max_seqlen_k"))
    requests = min(len(cu_q), len(cu_k)) - 1
    layout = Layout(requests, cu_q, cu_k, max_k=longest if isinstance(longest, int) else None)
    if _needs_gradients(query, key, value):
        mask = _packed_mask(cu_q, cu_k, query.shape[2], key.shape[2])
        out: torch.Tensor = _Differentiable.apply(query, key, value, layout, scaling, mask)
        return out
    return attention(query, key, value, layout, scaling)


def _packed_mask(cu_q: torch.Tensor, cu_k: torch.Tensor, q_len: int, k_len: int) -> torch.Tensor:
    """(q, k) of booleans: causal within each request, whose last query is its last key."""

    def places(bounds: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each token: its request, and how many of that request come after it."""
        at = torch.arange(length, device=bounds.device)
        request = torch.bucketize(at, bounds[1:], right=True)
        ends = F.pad(bounds[1:], (0, 1), value=length)  # what is left over belongs to nobody
        return request, ends[request] - at

    (q_request, q_left), (k_request, k_left) = places(cu_q, q_len), places(cu_k, k_len)
    return (q_request[:, None] == k_request) & (q_left[:, None] <= k_left)


def _causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(q, k) of booleans: the last query is the last key."""
    q_len, k_len = query.shape[2], key.shape[2]
    whole = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device)
    return whole.tril(k_len - q_len)
