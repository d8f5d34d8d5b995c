"""The kernels of `attention.py`: one query tile over its keys, split by split, and the merge."""

# ruff: noqa: N803, N806  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


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
