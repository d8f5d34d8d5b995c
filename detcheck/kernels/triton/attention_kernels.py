"""The kernels of `attention.py`: one query tile over its keys, split by split, and the merge."""

# ruff: noqa: N803, N806  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _request(
    slot, slots, schedule, starts, origins, q_size, k_size, BLOCK_Q: tl.constexpr,
    PACKED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_ORIGINS: tl.constexpr,
):  # fmt: skip
    """Which queries a slot computes.

    (batch entry, first query, queries, first key, keys, tile, position of the first key).
    """
    if PACKED:
        entry = 0
        q_first = tl.load(schedule + slot)
        queries = tl.load(schedule + slots + slot)
        k_first = tl.load(schedule + 2 * slots + slot)
        keys = tl.load(schedule + 3 * slots + slot)
        tile = tl.load(schedule + 4 * slots + slot)
        origin = tl.load(schedule + 5 * slots + slot) if HAS_ORIGINS else 0
    else:
        tiles = (q_size + BLOCK_Q - 1) // BLOCK_Q + 1
        entry = slot // tiles
        tile = slot % tiles
        k_first = tl.load(starts + entry).to(tl.int32) if HAS_STARTS else 0
        # Queries that are padding themselves are left out.
        q_first = tl.maximum(k_first - (k_size - q_size), 0)
        queries = q_size - q_first
        keys = k_size - k_first
        origin = tl.load(origins + entry).to(tl.int32) if HAS_ORIGINS else 0
    return entry, q_first, queries, k_first, keys, tile, origin


@triton.jit
def _capped(scores):
    """tanh, by the exponential of a negative number, which cannot overflow."""
    small = tl.exp2(tl.abs(scores) * -2.8853900817779268)  # 2 / log(2)
    bounded = (1.0 - small) / (1.0 + small)
    return tl.where(scores < 0, -bounded, bounded)


@triton.jit
def _finite(best, LOWER: tl.constexpr):
    """`best`, but 0 for rows that have met no key yet, whose weights are then 0 and no NaN."""
    return tl.where(best == -float("inf"), 0.0, best) if LOWER else best


@triton.jit
def _block(
    best, total, acc, q, keys, values, block, origin, length, positions, firsts, dims_inside,
    scale, cap, stride_kn, stride_vn, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr, LOWER: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into (largest score, sum of weights, weighted sum of values).

    `best` and `total` (rows,), `acc` (rows, dim), all float32; scores are in powers of 2. The block
    holds positions [block * BLOCK_N, (block + 1) * BLOCK_N); keys lie in memory from the position
    `origin` on, up to `length`. With LOWER rows see no key before their `firsts`.
    """
    within = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    start = block * BLOCK_N
    at = start + within
    first = tl.cast(start - origin, tl.int64)  # 64 bits once a block, not once an entry
    # Keys past either end read the nearest one: finite, and their weight is zero.
    safe = tl.minimum(within, length - 1 - start)
    if LOWER:
        safe = tl.maximum(safe, origin - start)
    key_places = keys + first * stride_kn + (safe[None, :] * stride_kn + dims[:, None])
    value_places = values + first * stride_vn + (safe[:, None] * stride_vn + dims[None, :])
    if EVEN_D:
        k = tl.load(key_places)
        v = tl.load(value_places)
    else:
        k = tl.load(key_places, mask=dims_inside[:, None], other=0.0)
        v = tl.load(value_places, mask=dims_inside[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision="ieee")
    if CAPPED:
        scores = _capped(scores * cap)
    visible = at[None, :] <= positions[:, None]
    if LOWER:
        visible &= at[None, :] >= firsts[:, None]
    scores = tl.where(visible, scores, -float("inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
    base = _finite(new_best, LOWER)
    # The one fused multiply-add is asked for by name; the compiler makes none of its own.
    weights = tl.exp2(tl.fma(scores, scale, -base[:, None]))
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _nothing(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The partial result of no keys."""
    best = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    return best, tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)


@triton.jit
def _merged(best, total, acc, part_best, part_total, part_acc, LOWER: tl.constexpr):
    """Two partial results as one: (rows,), (rows,), (rows, dim) each."""
    top = tl.maximum(best, part_best)
    base = _finite(top, LOWER)
    shrink = tl.exp2(best - base)
    part_shrink = tl.exp2(part_best - base)
    total = total * shrink + part_total * part_shrink
    acc = acc * shrink[:, None] + part_acc * part_shrink[:, None]
    return top, total, acc


@triton.jit
def _result(best, total, acc, sinks, heads, valid, HAS_SINKS: tl.constexpr):
    """The weighted mean of values. A head's sink is a key without a value; it joins at the end."""
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(best, sink)
        shrink = tl.exp2(best - top)
        total = total * shrink + tl.exp2(sink - top)
        acc = acc * shrink[:, None]
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def _in_turn(
    q, keys, values, begin, end, origin, length, positions, firsts, dims_inside, scale, cap,
    stride_kn, stride_vn, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr, SPLIT_BLOCKS: tl.constexpr, LOWER: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """All splits of a tile, merged as they end. One loop, so that loads run ahead across splits."""
    best, total, acc = _nothing(ROWS, BLOCK_D)
    part_best, part_total, part_acc = _nothing(ROWS, BLOCK_D)
    for block in range(begin, end):
        part_best, part_total, part_acc = _block(
            part_best, part_total, part_acc, q, keys, values, block, origin, length, positions,
            firsts, dims_inside, scale, cap, stride_kn, stride_vn, BLOCK_N, BLOCK_D, EVEN_D, LOWER,
            CAPPED,
        )  # fmt: skip
        if ((block + 1) % SPLIT_BLOCKS == 0) | (block + 1 == end):
            best, total, acc = _merged(best, total, acc, part_best, part_total, part_acc, LOWER)
            part_best, part_total, part_acc = _nothing(ROWS, BLOCK_D)
    return best, total, acc


# One binary for any load: what grows with it is not compiled in.
@triton.jit(do_not_specialize=["q_size", "k_size", "out_rows", "parts"])
def attention_kernel(  # noqa: PLR0915  (a kernel is one function)
    query, key, value, out, partial, schedule, starts, origins, firsts, sinks,
    q_size, k_size, out_rows, parts, scale, cap,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_BLOCKS: tl.constexpr,
    PARALLEL: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
    HAS_ORIGINS: tl.constexpr, HAS_FIRSTS: tl.constexpr, HAS_SINKS: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one key-value head.

    Grid: (slots, kv_heads, splits if PARALLEL else 1). `out` is (out_rows, heads, DIM). With
    PARALLEL, `partial` holds `parts` = splits * out_rows * heads partial results, which
    `merge_kernel` merges: first all sums (parts, DIM), then the best scores, then the totals. With
    HAS_FIRSTS, which goes with splits in turn, `firsts` (out_rows,) are the positions from which on
    rows see keys. Scores are capped by tanh(score * cap) before they are scaled.
    """
    BLOCK_Q: tl.constexpr = ROWS // GROUP_ROWS
    EVEN_D: tl.constexpr = DIM == BLOCK_D
    LOWER: tl.constexpr = HAS_ORIGINS or HAS_FIRSTS
    slots = tl.num_programs(0)
    entry, q_first, queries, k_first, keys, tile, origin = _request(
        tl.program_id(0), slots, schedule, starts, origins, q_size, k_size, BLOCK_Q, PACKED,
        HAS_STARTS, HAS_ORIGINS,
    )  # fmt: skip
    length = origin + keys
    past = length - queries  # the position of the first query
    rows_end = length
    if PACKED:  # rows after the last request have no keys, and get zeros
        past = tl.where(keys > 0, past, 0)
        rows_end = tl.where(keys > 0, length, queries)
    tile_start = (past // BLOCK_Q + tile) * BLOCK_Q  # a position, a multiple of BLOCK_Q
    if (tile_start >= rows_end) | (queries == 0):
        return
    kv_head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    positions = tile_start + rows // GROUP_ROWS
    heads = kv_head * GROUP + rows % GROUP_ROWS
    valid = (positions >= past) & (positions < rows_end) & (rows % GROUP_ROWS < GROUP)
    dims = tl.arange(0, BLOCK_D)
    dims_inside = dims < DIM
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
    # Blocks that a row does not see change none of its bits: weights of 0, and factors of 1.
    last = tl.minimum(tile_start + BLOCK_Q, length)
    end = (last + BLOCK_N - 1) // BLOCK_N
    out_row = in_query if PACKED else in_query + entry64 * q_size
    seen_from = positions * 0 + origin
    begin = origin // BLOCK_N
    if HAS_FIRSTS:
        seen_from = tl.load(firsts + out_row, mask=valid, other=2147483647)
        begin = tl.minimum(tl.min(seen_from, axis=0), last) // BLOCK_N
    places = out_row * (tl.num_programs(1) * GROUP) + heads
    entries = valid[:, None] & dims_inside[None, :]
    if PARALLEL:
        split = tl.program_id(2) + origin // (SPLIT_BLOCKS * BLOCK_N)
        if split * SPLIT_BLOCKS >= end:
            return
        places += tl.program_id(2).to(tl.int64) * out_rows * (tl.num_programs(1) * GROUP)
        begin = tl.maximum(begin, split * SPLIT_BLOCKS)
        best, total, acc = _nothing(ROWS, BLOCK_D)
        for block in range(begin, tl.minimum((split + 1) * SPLIT_BLOCKS, end)):
            best, total, acc = _block(
                best, total, acc, q, keys_at, values_at, block, origin, length, positions,
                seen_from, dims_inside, scale, cap, stride_kn, stride_vn, BLOCK_N, BLOCK_D, EVEN_D,
                LOWER, CAPPED,
            )  # fmt: skip
        parts64 = tl.cast(parts, tl.int64)
        tl.store(partial + places[:, None] * DIM + dims[None, :], acc, mask=entries)
        tl.store(partial + parts64 * DIM + places, best, mask=valid)
        tl.store(partial + parts64 * (DIM + 1) + places, total, mask=valid)
    else:
        best, total, acc = _in_turn(
            q, keys_at, values_at, begin, end, origin, length, positions, seen_from, dims_inside,
            scale, cap, stride_kn, stride_vn, ROWS, BLOCK_N, BLOCK_D, EVEN_D, SPLIT_BLOCKS, LOWER,
            CAPPED,
        )  # fmt: skip
        result = _result(best, total, acc, sinks, heads, valid, HAS_SINKS)
        tl.store(
            out + places[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty),
            mask=entries,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "k_size", "q_size", "parts"])
def merge_kernel(
    partial, out, row_splits, starts, origins, sinks, count, q_size, k_size, parts,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    SPLIT: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
    HAS_ORIGINS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """out (count, DIM) from partial results (splits, count, …), merged in the order of the splits.

    `count` is rows by heads. A row that sees no key (padding) becomes zeros. Grid: (count / ROWS,).
    """
    places = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = places < count
    row = places // HEADS
    if PACKED:
        splits = tl.load(row_splits + row, mask=inside, other=0)
    else:
        position = (row % q_size).to(tl.int32) + k_size - q_size
        if HAS_STARTS:
            position -= tl.load(starts + row // q_size, mask=inside, other=0).to(tl.int32)
        splits = position // SPLIT + 1
        if HAS_ORIGINS:
            origin = tl.load(origins + row // q_size, mask=inside, other=0).to(tl.int32)
            splits = (origin + position) // SPLIT - origin // SPLIT + 1
        splits = tl.where(inside & (position >= 0), splits, 0)
    dims = tl.arange(0, BLOCK_D)
    entries = inside[:, None] & (dims < DIM)[None, :]
    best, total, acc = _nothing(ROWS, BLOCK_D)
    at = places
    parts64 = tl.cast(parts, tl.int64)
    for split in range(tl.max(splits, axis=0)):
        reached = split < splits
        part_acc = tl.load(
            partial + at[:, None] * DIM + dims[None, :], mask=entries & reached[:, None], other=0.0
        )
        part_best = tl.load(partial + parts64 * DIM + at, mask=reached, other=0.0)
        part_total = tl.load(partial + parts64 * (DIM + 1) + at, mask=reached, other=0.0)
        top, new_total, new_acc = _merged(
            best, total, acc, part_best, part_total, part_acc, HAS_ORIGINS
        )
        # A row past its last split keeps its bits, even the sign of a zero.
        best = tl.where(reached, top, best)
        total = tl.where(reached, new_total, total)
        acc = tl.where(reached[:, None], new_acc, acc)
        at += count
    result = _result(best, total, acc, sinks, (places % HEADS).to(tl.int32), inside, HAS_SINKS)
    tl.store(
        out + places[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty), mask=entries
    )
