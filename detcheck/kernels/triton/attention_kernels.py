"""The kernels of `attention.py`: one query tile over its keys, split by split, and the merge."""

# ruff: noqa: N803, N806  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _search(index, cu_q, requests, BLOCK_Q: tl.constexpr, BY_SLOT: tl.constexpr):
    """The last request that starts at or before each index: a slot with BY_SLOT, else a row.

    Request i starts at row cu_q[i], and at slot cu_q[i] // BLOCK_Q + 2 * i. `requests` itself is
    found for the rows and slots after the last request.
    """
    low = tl.zeros_like(index)
    high = low + requests
    left = requests
    while left > 0:
        middle = (low + high + 1) // 2
        first = tl.load(cu_q + middle).to(tl.int32)
        if BY_SLOT:
            first = first // BLOCK_Q + 2 * middle
        before = first <= index
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
        left = left // 2
    return low


@triton.jit(do_not_specialize=["requests", "q_size", "slots"])
def schedule_kernel(
    schedule, row_splits, cu_q, cu_k, requests, q_size, slots,
    BLOCK_Q: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Which tile of which packed request each slot computes, and how many splits each row has.

    `schedule` (5, slots) int32: a slot's first query row, queries, first key, keys and tile.
    `row_splits` (q_size,) int32: splits of the keys that a row sees; 0 for rows after the last
    request. Those rows are served as a request without keys. Grid: enough blocks for both.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    request = _search(index, cu_q, requests, BLOCK_Q, True)
    exists = request < requests
    q_first = tl.load(cu_q + request).to(tl.int32)
    q_end = tl.load(cu_q + request + 1, mask=exists, other=0).to(tl.int32)
    k_first = tl.load(cu_k + request, mask=exists, other=0).to(tl.int32)
    k_end = tl.load(cu_k + request + 1, mask=exists, other=0).to(tl.int32)
    queries = tl.where(exists, q_end, q_size) - q_first
    tile = index - q_first // BLOCK_Q - 2 * request
    inside = index < slots
    tl.store(schedule + index, q_first, mask=inside)
    tl.store(schedule + slots + index, queries, mask=inside)
    tl.store(schedule + 2 * slots + index, k_first, mask=inside)
    tl.store(schedule + 3 * slots + index, k_end - k_first, mask=inside)
    tl.store(schedule + 4 * slots + index, tile, mask=inside)
    request = _search(index, cu_q, requests, BLOCK_Q, False)
    exists = request < requests
    after = tl.load(cu_q + request + 1, mask=exists, other=0).to(tl.int32) - index
    keys = tl.load(cu_k + request + 1, mask=exists, other=0).to(tl.int32)
    keys -= tl.load(cu_k + request, mask=exists, other=0).to(tl.int32)
    splits = tl.where(exists, (keys - after) // SPLIT + 1, 0)
    tl.store(row_splits + index, splits, mask=index < q_size)


@triton.jit
def _request(
    slot, slots, schedule, starts, q_size, k_size,
    BLOCK_Q: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """Which queries a slot computes: (batch entry, first query, queries, first key, keys, tile)."""
    if PACKED:
        entry = 0
        q_first = tl.load(schedule + slot)
        queries = tl.load(schedule + slots + slot)
        k_first = tl.load(schedule + 2 * slots + slot)
        keys = tl.load(schedule + 3 * slots + slot)
        tile = tl.load(schedule + 4 * slots + slot)
    else:
        tiles = (q_size + BLOCK_Q - 1) // BLOCK_Q + 1
        entry = slot // tiles
        tile = slot % tiles
        k_first = tl.load(starts + entry).to(tl.int32) if HAS_STARTS else 0
        # Queries that are padding themselves are left out.
        q_first = tl.maximum(k_first - (k_size - q_size), 0)
        queries = q_size - q_first
        keys = k_size - k_first
    return entry, q_first, queries, k_first, keys, tile


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
def _nothing(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The partial result of no keys."""
    best = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    return best, tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)


@triton.jit
def _merged(best, total, acc, part_best, part_total, part_acc):
    """Two partial results as one: (rows,), (rows,), (rows, dim) each."""
    top = tl.maximum(best, part_best)
    shrink = tl.exp2(best - top)
    part_shrink = tl.exp2(part_best - top)
    total = total * shrink + part_total * part_shrink
    acc = acc * shrink[:, None] + part_acc * part_shrink[:, None]
    return top, total, acc


@triton.jit
def _in_turn(
    q, keys, values, blocks, k_len, positions, dims_inside, scale, stride_kn, stride_vn,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    SPLIT_BLOCKS: tl.constexpr,
):  # fmt: skip
    """All splits of a tile, merged as they end. One loop, so that loads run ahead across splits."""
    best, total, acc = _nothing(ROWS, BLOCK_D)
    part_best, part_total, part_acc = _nothing(ROWS, BLOCK_D)
    for block in range(0, blocks):
        part_best, part_total, part_acc = _block(
            part_best, part_total, part_acc, q, keys, values, block, k_len, positions,
            dims_inside, scale, stride_kn, stride_vn, BLOCK_N, BLOCK_D, EVEN_D,
        )  # fmt: skip
        if ((block + 1) % SPLIT_BLOCKS == 0) | (block + 1 == blocks):
            best, total, acc = _merged(best, total, acc, part_best, part_total, part_acc)
            part_best, part_total, part_acc = _nothing(ROWS, BLOCK_D)
    return best, total, acc


# One binary for any load: what grows with it is not compiled in.
@triton.jit(do_not_specialize=["q_size", "k_size", "out_rows"])
def attention_kernel(
    query, key, value, out, partial_best, partial_total, partial_acc, schedule, starts,
    q_size, k_size, out_rows, scale,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_BLOCKS: tl.constexpr,
    PARALLEL: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one key-value head.

    Grid: (slots, kv_heads, splits if PARALLEL else 1). `out` is (out_rows, heads, DIM). With
    PARALLEL, partial results go to `partial_acc` (splits, out_rows, heads, DIM), `partial_best`
    and `partial_total` (splits, out_rows, heads), and `merge_kernel` merges them.
    """
    BLOCK_Q: tl.constexpr = ROWS // GROUP_ROWS
    EVEN_D: tl.constexpr = DIM == BLOCK_D
    slots = tl.num_programs(0)
    entry, q_first, queries, k_first, keys, tile = _request(
        tl.program_id(0), slots, schedule, starts, q_size, k_size, BLOCK_Q, PACKED, HAS_STARTS
    )
    past = keys - queries
    length = keys
    if PACKED:  # rows after the last request have no keys, and get zeros
        past = tl.where(keys > 0, past, 0)
        length = tl.where(keys > 0, keys, queries)
    tile_start = (past // BLOCK_Q + tile) * BLOCK_Q  # a position, a multiple of BLOCK_Q
    if (tile_start >= length) | (queries == 0):
        return
    kv_head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    positions = tile_start + rows // GROUP_ROWS
    heads = kv_head * GROUP + rows % GROUP_ROWS
    valid = (positions >= past) & (positions < length) & (rows % GROUP_ROWS < GROUP)
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
    # Blocks after a row's own position change none of its bits: weights of 0, and factors of 1.
    end = tl.minimum(tile_start + BLOCK_Q, keys)
    blocks = (end + BLOCK_N - 1) // BLOCK_N
    out_row = in_query if PACKED else in_query + entry64 * q_size
    places = out_row * (tl.num_programs(1) * GROUP) + heads
    entries = valid[:, None] & dims_inside[None, :]
    if PARALLEL:
        split = tl.program_id(2)
        if split * SPLIT_BLOCKS >= blocks:
            return
        places += split.to(tl.int64) * out_rows * (tl.num_programs(1) * GROUP)
        best, total, acc = _nothing(ROWS, BLOCK_D)
        for block in range(split * SPLIT_BLOCKS, tl.minimum((split + 1) * SPLIT_BLOCKS, blocks)):
            best, total, acc = _block(
                best, total, acc, q, keys_at, values_at, block, keys, positions, dims_inside,
                scale, stride_kn, stride_vn, BLOCK_N, BLOCK_D, EVEN_D,
            )  # fmt: skip
        tl.store(partial_best + places, best, mask=valid)
        tl.store(partial_total + places, total, mask=valid)
        tl.store(partial_acc + places[:, None] * DIM + dims[None, :], acc, mask=entries)
    else:
        best, total, acc = _in_turn(
            q, keys_at, values_at, blocks, keys, positions, dims_inside, scale,
            stride_kn, stride_vn, ROWS, BLOCK_N, BLOCK_D, EVEN_D, SPLIT_BLOCKS,
        )  # fmt: skip
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(
            out + places[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty),
            mask=entries,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "k_size", "q_size"])
def merge_kernel(
    partial_best, partial_total, partial_acc, out, row_splits, starts, count, q_size, k_size,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    SPLIT: tl.constexpr, PACKED: tl.constexpr, HAS_STARTS: tl.constexpr,
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
        splits = tl.where(inside & (position >= 0), position // SPLIT + 1, 0)
    dims = tl.arange(0, BLOCK_D)
    entries = inside[:, None] & (dims < DIM)[None, :]
    best, total, acc = _nothing(ROWS, BLOCK_D)
    at = places
    for split in range(tl.max(splits, axis=0)):
        reached = split < splits
        part_best = tl.load(partial_best + at, mask=reached, other=0.0)
        part_total = tl.load(partial_total + at, mask=reached, other=0.0)
        part_acc = tl.load(
            partial_acc + at[:, None] * DIM + dims[None, :],
            mask=entries & reached[:, None], other=0.0,
        )  # fmt: skip
        top, new_total, new_acc = _merged(best, total, acc, part_best, part_total, part_acc)
        # A row past its last split keeps its bits, even the sign of a zero.
        best = tl.where(reached, top, best)
        total = tl.where(reached, new_total, total)
        acc = tl.where(reached[:, None], new_acc, acc)
        at += count
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + places[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty), mask=entries
    )
