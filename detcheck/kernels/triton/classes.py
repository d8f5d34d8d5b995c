"""Which tiles give the same bits on this card, and the fastest of them: found by experiment.

Tiles of one table ought to agree, since they add up over K with the same instruction in the same
order. Whether they do is up to the compiler and the card. So before a tile is used for a kind of
product (K, N, dtype, layout, device), it is tried against the anchor tile on data that cancels,
which a change of order cannot survive unseen; one that differs is not used. Of those that agree,
the one that is fastest on the operands at hand serves this kind and range of M from then on: which
it is changes no bit. The first call of a kind and range therefore takes longer; later ones do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from detcheck.kernels.triton.configs import Table, Tile, anchor, segment_k, table
from detcheck.kernels.triton.descriptors import ALIGNMENT_BYTES, fits
from detcheck.kernels.triton.launch import capability

PROBE_ROWS = 32
PROBE_COLUMNS = 512
"""Columns are independent, and each adds up in the same order: more of them would show no more."""

WARMUP_MS, TIMED_MS = 2, 6
"""What timing one tile may take, about."""

Product = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, Tile, int, bool | None], torch.Tensor
]
"""(1, M, K) x (1, K, N) with a tile, segments of K and whether side by side, to (1, M, N)."""


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
    descriptors: bool = False
    """Whether tiles may be loaded by the copy unit."""


@dataclass(slots=True)
class TileClass:
    """The tiles of one kind that agree with its anchor, tried when they are first asked for."""

    kind: Kind
    tiles: Table
    multiply: Product
    _chosen: dict[int, Tile] = field(default_factory=dict)
    """By the largest M that a tile is chosen for."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tile(self, rows: int, time: Callable[[Tile], float] | None = None) -> Tile:
        """The tile for M = `rows`: the fastest by `time`, of the table's for this M in the class.

        Without `time`, the first. Where none is in the class, of those for the next larger M.
        """
        limit = next(limit for limit, _ in self.tiles if rows <= limit)
        chosen = self._chosen.get(limit)
        if chosen is None:
            if self.kind.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return anchor(self.tiles)  # no moment for experiments
            with self._lock:
                chosen = self._chosen[limit] = self._search(limit, time)
        return chosen

    def usable(self, limit: int) -> list[Tile]:
        """The table's tiles for M up to `limit` that this kind can use, of those in the class."""
        tiles = [tile for largest, tile in self.tiles if largest == limit]
        if not self.kind.descriptors:
            tiles = [tile for tile in tiles if not tile.descriptors]
        last = anchor(self.tiles)
        return [tile for tile in tiles if tile == last or self._agrees_if_it_runs(tile)]

    def _search(self, limit: int, time: Callable[[Tile], float] | None) -> Tile:
        limits = dict.fromkeys(largest for largest, _ in self.tiles if largest >= limit)
        found = next(tiles for tiles in map(self.usable, limits) if tiles)
        return min(found, key=time) if time is not None and len(found) > 1 else found[0]

    def _agrees_if_it_runs(self, tile: Tile) -> bool:
        try:
            return self.agrees(tile)
        except Exception:  # whatever the compiler or the driver has against it on this card
            return False

    def agrees(self, tile: Tile) -> bool:
        """Whether a tile gives the anchor's bits on the probe."""
        left, right = cancelling_operands(self.kind)
        segment = segment_k(self.kind.columns, self.kind.inner)
        expected = self.multiply(left, right, None, anchor(self.tiles), segment, None)
        ways = (True, False) if segment else (None,)  # segments side by side, and in turn
        return all(
            torch.equal(self.multiply(left, right, None, tile, segment, way), expected)
            for way in ways
        )


def cancelling_operands(kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded (1, PROBE_ROWS, K) and (1, K, N) whose products nearly cancel in pairs.

    Partial sums are large and the total is small, so that a change of order survives rounding to
    bfloat16. Each pair lies at a random distance along K.
    """
    generator = torch.Generator(kind.device).manual_seed(0)
    on: Any = {"generator": generator, "device": kind.device}
    half = kind.inner // 2
    order = torch.randperm(kind.inner, **on)
    first, second = order[:half], order[half : 2 * half]
    columns = min(kind.columns, PROBE_COLUMNS)
    left = torch.randn(PROBE_ROWS, kind.inner, **on)
    right = torch.randn(columns, kind.inner, **on)
    left[:, second] = left[:, first] * (1 + torch.randn(half, **on) / 128)
    right[:, second] = -right[:, first]
    right = right.to(kind.dtype)
    right = right.t() if kind.transposed else right.t().contiguous()
    return left.to(kind.dtype)[None], right[None]


def classes(left: torch.Tensor, right: torch.Tensor, multiply: Product) -> TileClass:
    """The class of the product of `left` (B, M, K) and `right` (B, K, N)."""
    inner, columns = right.shape[1:]
    transposed = right.stride(2) != 1
    descriptors = (
        segment_k(columns, inner) == 0
        and inner * left.element_size() % ALIGNMENT_BYTES == 0
        and fits(left, right)
    )
    kind = Kind(inner, columns, left.dtype, transposed, left.device, descriptors)
    return _class(kind, multiply)


@cache
def _class(kind: Kind, multiply: Product) -> TileClass:
    return TileClass(kind, table(kind.dtype, capability(kind.device)), multiply)


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU, operands not in its cache; infinity where it fails."""
    from triton.testing import do_bench

    try:
        return float(do_bench(call, warmup=WARMUP_MS, rep=TIMED_MS, return_mode="median"))
    except Exception:  # such as no memory for the buffer that clears the cache
        return float("inf")
