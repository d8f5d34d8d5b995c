"""The kernel that lays packed requests out: which program computes which tile, once a step."""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
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


@triton.jit
def _origin(positions, q_first, q_end, keys, exists, HAS_ORIGINS: tl.constexpr):
    """Positions of the first keys of requests: 0, unless a cache dropped the keys before them."""
    origin = tl.zeros_like(keys)
    if HAS_ORIGINS:
        inside = exists & (q_end > q_first)
        last = tl.load(positions + q_end - 1, mask=inside, other=0).to(tl.int32)
        origin = tl.maximum(last + 1 - keys, 0)
    return origin


@triton.jit(do_not_specialize=["requests", "q_size", "slots", "window"])
def schedule_kernel(
    schedule, row_splits, firsts, cu_q, cu_k, positions, requests, q_size, slots, window,
    BLOCK_Q: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
    HAS_ORIGINS: tl.constexpr, HAS_FIRSTS: tl.constexpr,
):  # fmt: skip
    """Which tile of which packed request each slot computes, and which keys each row sees.

    `schedule` (6, slots) int32: a slot's first query row, queries, first key, keys, tile and
    origin, the position of its first key. `row_splits` (q_size,) int32: splits of the keys that a
    row sees; 0 for rows after the last request, which are served as a request without keys.
    `firsts` (q_size,) int32, with HAS_FIRSTS: the position of the first key that a row sees through
    a window of `window` keys. `positions` (q_size,), with HAS_ORIGINS: those of the queries. Grid:
    enough blocks for slots and rows.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    request = _search(index, cu_q, requests, BLOCK_Q, True)
    exists = request < requests
    q_first = tl.load(cu_q + request).to(tl.int32)
    q_end = tl.load(cu_q + request + 1, mask=exists, other=0).to(tl.int32)
    k_first = tl.load(cu_k + request, mask=exists, other=0).to(tl.int32)
    keys = tl.load(cu_k + request + 1, mask=exists, other=0).to(tl.int32) - k_first
    queries = tl.where(exists, q_end, q_size) - q_first
    tile = index - q_first // BLOCK_Q - 2 * request
    inside = index < slots
    tl.store(schedule + index, q_first, mask=inside)
    tl.store(schedule + slots + index, queries, mask=inside)
    tl.store(schedule + 2 * slots + index, k_first, mask=inside)
    tl.store(schedule + 3 * slots + index, keys, mask=inside)
    tl.store(schedule + 4 * slots + index, tile, mask=inside)
    origin = _origin(positions, q_first, q_end, keys, exists, HAS_ORIGINS)
    tl.store(schedule + 5 * slots + index, origin, mask=inside)
    request = _search(index, cu_q, requests, BLOCK_Q, False)
    exists = request < requests
    q_first = tl.load(cu_q + request).to(tl.int32)
    q_end = tl.load(cu_q + request + 1, mask=exists, other=0).to(tl.int32)
    keys = tl.load(cu_k + request + 1, mask=exists, other=0).to(tl.int32)
    keys -= tl.load(cu_k + request, mask=exists, other=0).to(tl.int32)
    origin = _origin(positions, q_first, q_end, keys, exists, HAS_ORIGINS)
    position = origin + keys - (q_end - index)
    splits = tl.where(exists, position // SPLIT - origin // SPLIT + 1, 0)
    tl.store(row_splits + index, splits, mask=index < q_size)
    if HAS_FIRSTS:
        first = tl.maximum(position + 1 - window, origin)
        tl.store(firsts + index, first, mask=index < q_size)
