"""Which tiles give the same bits on this card: found by experiment, once a kind of product.

Tiles of one table ought to agree, since they add up over K with the same instruction in the same
order. Whether they do is up to the compiler and the card. So before a tile is used for a kind of
product (K, N, dtype, layout, device), it is tried against the anchor tile on data that cancels,
which a change of order cannot survive unseen; one that differs is replaced by the next larger tile
that does not. The first call of a kind therefore waits for the device; later ones never do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

from detcheck.kernels.triton.configs import Table, Tile, anchor, segment_k, table
from detcheck.kernels.triton.launch import capability

PROBE_ROWS = 32
PROBE_COLUMNS = 512
"""Columns are independent, and each adds up in the same order: more of them would show no more."""

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Tile, int], torch.Tensor]
"""(1, M, K) x (1, K, N) with a tile, to (1, M, N)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the order of accumulation may depend on, besides the tile."""

    inner: int
    """K, the length of the sums."""
    columns: int
    """N."""
    dtype: torch.dtype
    transposed: bool
    """Whether the right-hand side is the transpose of an (N, K) tensor."""
    device: torch.device


@dataclass(slots=True)
class TileClass:
    """The tiles of one kind that agree with its anchor, tried when they are first asked for."""

    kind: Kind
    tiles: Table
    multiply: Product
    _chosen: dict[int, Tile] = field(default_factory=dict)
    """Index in `tiles`, to the tile that stands in for it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tile(self, rows: int) -> Tile:
        """The tile for M = `rows`: that of the table, or the next larger one in the class."""
        index = next(i for i, (limit, _) in enumerate(self.tiles) if rows <= limit)
        chosen = self._chosen.get(index)
        if chosen is None:
            with self._lock:
                chosen = self._chosen[index] = self._search(index)
        return chosen

    def _search(self, index: int) -> Tile:
        last = anchor(self.tiles)
        candidates = [tile for _, tile in self.tiles[index:]]
        return next(tile for tile in candidates if tile == last or self.agrees(tile))

    def agrees(self, tile: Tile) -> bool:
        """Whether a tile gives the anchor's bits on the probe."""
        left, right = cancelling_operands(self.kind)
        segment = segment_k(self.kind.columns, self.kind.inner)
        expected = self.multiply(left, right, None, anchor(self.tiles), segment)
        return torch.equal(self.multiply(left, right, None, tile, segment), expected)


def cancelling_operands(kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded (1, PROBE_ROWS, K) and (1, K, N) whose products nearly cancel in pairs.

    Partial sums are large and the total is small, so that a change of order survives rounding to
    bfloat16. Each pair lies at a random distance along K.
    """
    generator = torch.Generator().manual_seed(0)
    half = kind.inner // 2
    order = torch.randperm(kind.inner, generator=generator)
    first, second = order[:half], order[half : 2 * half]
    columns = min(kind.columns, PROBE_COLUMNS)
    left = torch.randn(PROBE_ROWS, kind.inner, generator=generator)
    right = torch.randn(columns, kind.inner, generator=generator)
    left[:, second] = left[:, first] * (1 + torch.randn(half, generator=generator) / 128)
    right[:, second] = -right[:, first]
    right = right.to(kind.device, kind.dtype)
    right = right.t() if kind.transposed else right.t().contiguous()
    return left.to(kind.device, kind.dtype)[None], right[None]


def classes(left: torch.Tensor, right: torch.Tensor, multiply: Product) -> TileClass:
    """The class of the product of `left` (B, M, K) and `right` (B, K, N)."""
    transposed = right.stride(2) != 1
    kind = Kind(left.shape[2], right.shape[2], left.dtype, transposed, left.device)
    return _class(kind, multiply)


@cache
def _class(kind: Kind, multiply: Product) -> TileClass:
    return TileClass(kind, table(kind.dtype, capability(kind.device)), multiply)
