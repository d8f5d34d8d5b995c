"""Queries that are computed by themselves on the CPU: in decoding, or one by one in a prefill.

Each query has the keys that it sees, padded to a whole number of `KEY_STEP` keys. A mask hides the
padding. Queries with equally many padded keys are entries of one call of the stock kernel;
`packing.py` forms the calls. An entry has the same bits in any such call, for these reasons:

- The stock kernel computes each entry and key-value head by itself, in blocks over the keys that
  depend on the padded length alone.
- The heads that share a key-value head are the rows of one small product. They are padded to
  `tile_rows`, so that each thread's scratch buffer, each query and each key starts at the same
  distance from a cache line. MKL rounds small products differently if that distance differs.
- If a call had a single product, MKL would share it among the threads. So such a call is doubled.

A prompt that is computed query by query therefore has the bits that decoding gives.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from detcheck.kernels.cpu.packing import Plan
from detcheck.kernels.cpu.stock import stock_kernel

CACHE_LINE_BYTES = 64
ROW_STEP = 8
"""Rows of a product are padded to a multiple of this, and of more for odd head sizes."""
MAX_ROWS = 32
"""The stock kernel arranges products of 64 rows and more differently. More heads are split."""

FLASH_OP = "_scaled_dot_product_flash_attention_for_cpu"
"""The aten op that `F.scaled_dot_product_attention` calls on the CPU."""
_flash = getattr(torch.ops.aten, FLASH_OP).default
_stock_flash = stock_kernel(FLASH_OP)
Kernel = Callable[..., Any]
_local = threading.local()


@cache
def tile_rows(group: int, dim: int, dtype: torch.dtype) -> int:
    """Rows that `group` heads of size `dim` are padded to; a part of them if there are many."""
    unit = math.lcm(ROW_STEP, CACHE_LINE_BYTES // math.gcd(CACHE_LINE_BYTES, dim * dtype.itemsize))
    if dim % 2:
        unit = math.lcm(unit, 2 * ROW_STEP)
    return min(MAX_ROWS, -(-group // unit) * unit)


def attend_queries(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    scaling: float | None = None,
    *,
    gathered: bool = False,
) -> torch.Tensor:
    """Attention of each query of the plan by itself; returns (q, heads, dim).

    query (q, heads, dim), key and value (k, kv_heads, dim), as numbered in the plan's segments; or,
    if `gathered`, the keys `plan.keys` alone, in this order. The last query of a segment is at its
    last key. Queries in no segment get zeros. Dispatch modes see the ops inside only if gradients
    are needed: an op's entries are not in the order of the requests, and so cannot be compared
    between batches.
    """
    if needs_gradients(query, key, value):
        with _whole_calls():
            return _attend_queries(query, key, value, plan, scaling, _flash, gathered)
    if not torch._C._len_torch_dispatch_stack():
        return _attend_queries(query, key, value, plan, scaling, _stock_flash, gathered)
    with _disable_current_modes():
        return _attend_queries(query, key, value, plan, scaling, _stock_flash, gathered)


def _attend_queries(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    scaling: float | None,
    flash: Kernel,
    gathered: bool,
) -> torch.Tensor:
    num_queries, heads, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    rows = tile_rows(group, dim, query.dtype)
    parts = -(-group // rows)
    if parts > 1:
        key, value = (x.repeat_interleave(parts, 1) for x in (key, value))
    order, calls = plan.order, plan.calls
    tiles = query.reshape(num_queries, kv_heads, group, dim)
    if order is not None:
        tiles = tiles.index_select(0, order)
    tiles = torch.constant_pad_nd(tiles, (0, 0, 0, rows * parts - group))
    if parts > 1:
        tiles = tiles.view(-1, kv_heads * parts, rows, dim)
    outs, start, first_key = [], 0, 0
    for number, call in enumerate(calls):
        stop = start + len(call.queries)
        mask = plan.mask(number, query.dtype, rows)
        num_keys = call.keys.shape[0]
        if not gathered:
            keys, values = (x.index_select(0, call.keys) for x in (key, value))
        elif num_keys == key.shape[0]:
            keys, values = key, value
        else:
            keys, values = (x.narrow(0, first_key, num_keys) for x in (key, value))
        own = tiles if stop - start == tiles.shape[0] else tiles[start:stop]
        outs.append(_attend(own, keys, values, call.length, mask, scaling, flash))
        start, first_key = stop, first_key + num_keys
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    if parts > 1:
        out = out.reshape(start, kv_heads, rows * parts, dim)
    out = out.narrow(2, 0, group).reshape(start, heads, dim)
    if order is None and start == num_queries:
        return out
    where = torch.arange(start) if order is None else order
    return out.new_zeros(query.shape).index_copy(0, where, out)


def _attend(
    tiles: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    length: int,
    mask: torch.Tensor,
    scaling: float | None,
    flash: Kernel,
) -> torch.Tensor:
    """One call of the stock kernel for tiles (entries, kv_heads, rows, dim).

    key and value (entries * length, kv_heads, dim), or (length, kv_heads, dim) for all entries;
    mask (entries, 1, rows, length).
    """
    entries, kv_heads, _, dim = tiles.shape
    shape = (-1, length, kv_heads, dim)
    keys, values = key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2)
    if entries * kv_heads == 1:
        # A single product would be shared among the threads, so there are two equal ones.
        tiles, keys, values, mask = (x.expand(2, -1, -1, -1) for x in (tiles, keys, values, mask))
    elif keys.shape[0] != entries:
        keys, values = (x.expand(entries, -1, -1, -1) for x in (keys, values))
    out: torch.Tensor = flash(tiles, keys, values, attn_mask=mask, scale=scaling)[0]
    return out if out.shape[0] == entries else out[:entries]


class OneCall:
    """Attention of a plan whose queries share one call, in their own order, in inference.

    Layers use it one after another: the tile of padded queries is kept from one to the next.
    """

    def __init__(self, plan: Plan, query: torch.Tensor, kv_heads: int):
        """For queries as `query` (q, heads, dim)."""
        num_queries, heads, dim = query.shape
        group = heads // kv_heads
        rows = tile_rows(group, dim, query.dtype)
        tile = query.new_zeros((num_queries, kv_heads, rows, dim))
        self._tile, self._queries = tile, tile[:, :, :group]
        self._keys = (-1, plan.calls[0].length, kv_heads, dim)
        self._mask = plan.mask(0, query.dtype, rows)
        self._out = (num_queries, heads, dim)

    @staticmethod
    def serves(plan: Plan, query: torch.Tensor, kv_heads: int) -> bool:
        """True if `attend` gives what `attend_queries` does: so each query has keys of its own."""
        num_queries, heads, dim = query.shape
        call = plan.calls[0]
        return (
            len(plan.calls) == 1
            and plan.order is None
            and len(call.queries) == num_queries
            and len(call.keys) == num_queries * call.length
            and heads // kv_heads <= tile_rows(heads // kv_heads, dim, query.dtype)
            and num_queries * kv_heads > 1
        )

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """As `attend_queries`, with the keys in the order of `plan.keys`."""
        self._queries.copy_(query.view(self._queries.shape))
        keys, values = (x.view(self._keys).transpose(1, 2) for x in (key, value))
        out = _stock_flash(self._tile, keys, values, attn_mask=self._mask, scale=scaling)[0]
        return out[:, :, : self._queries.shape[2]].reshape(self._out)


def needs_gradients(*tensors: torch.Tensor) -> bool:
    """True if autograd has to see each op."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


@contextmanager
def _whole_calls() -> Iterator[None]:
    """Inside this context, calls of the flash op in this thread are not cut into their entries."""
    _local.whole = True
    try:
        yield
    finally:
        _local.whole = False


def calls_are_whole() -> bool:
    """True while a call of the flash op in this thread must not be cut into its entries."""
    return getattr(_local, "whole", False)
