"""Which tiles of the matrix product give the same bits on this card, and the fastest of them.

Tiles of one table ought to agree, since they add up over K with the same instruction in the same
order. Whether they do is up to the compiler and the card. So before a tile is used for a kind of
product (K, N, dtype, layout, device), it is compared with the anchor tile. The data of that
comparison cancel, so that another order of addition shows in the bits. A tile that differs is not
used. Among the tiles that agree, the one that is fastest on the operands at hand serves this kind
and range of M from then on; the choice changes no bit. The first call of a kind and range
therefore takes longer than later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from detcheck.kernels.triton.bit_class import BitClass
from detcheck.kernels.triton.configs import Table, Tile, anchor, segment_k, table
from detcheck.kernels.triton.descriptors import fits
from detcheck.kernels.triton.launch import ALIGNMENT_BYTES, capability

PROBE_ROWS = 32
PROBE_COLUMNS = 512
"""Columns are independent and add up in the same order, so more of them would show no more."""

Product = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, Tile, int, bool | None], torch.Tensor
]
"""(1, M, K) x (1, K, N) with a bias or None, a tile, the length of segments of K, and whether the
segments are computed side by side; returns (1, M, N)."""


@dataclass(frozen=True, slots=True)
class ProductKind:
    """Everything that the order of accumulation may depend on, besides the tile."""

    inner: int
    """K, the length of the sums."""
    columns: int
    """N."""
    dtype: torch.dtype
    transposed: bool
    """True if the right-hand side is the transpose of an (N, K) tensor."""
    device: torch.device
    descriptors: bool = False
    """True if the copy unit may load the tiles."""


class TileClass:
    """The tiles of one kind that agree with its anchor, tried when they are first asked for."""

    def __init__(self, kind: ProductKind, tiles: Table, multiply: Product):
        self.kind = kind
        self.tiles = tiles
        self.multiply = multiply
        self._class = BitClass(anchor(tiles), self.agrees)

    def tile(self, rows: int, time: Callable[[Tile], float] | None = None) -> Tile:
        """The tile for M = `rows`: of the table's tiles for this M in the class, the fastest.

        `time` gives the milliseconds of a tile; without it the first tile is used. If no tile for
        this M is in the class, one for the next larger M is used. While a CUDA graph is captured,
        an M that no tile was chosen for before gets the anchor.
        """
        limit = next(limit for limit, _ in self.tiles if rows <= limit)

        def groups() -> Iterator[list[Tile]]:
            larger = dict.fromkeys(largest for largest, _ in self.tiles if largest >= limit)
            return map(self._candidates, larger)

        return self._class.choose(limit, groups, time)

    def usable(self, limit: int) -> list[Tile]:
        """The table's tiles for M up to `limit` that suit this kind and are in the class."""
        return self._class.members(self._candidates(limit))

    def agrees(self, tile: Tile) -> bool:
        """True if a tile gives the anchor's bits on the probe."""
        left, right = cancelling_operands(self.kind)
        segment = segment_k(self.kind.columns, self.kind.inner)
        expected = self.multiply(left, right, None, anchor(self.tiles), segment, None)
        both = segment and not tile.descriptors
        ways = (True, False) if both else (None,)  # segments side by side, and in turn
        return all(
            torch.equal(self.multiply(left, right, None, tile, segment, way), expected)
            for way in ways
        )

    def _candidates(self, limit: int) -> list[Tile]:
        tiles = [tile for largest, tile in self.tiles if largest == limit]
        return [tile for tile in tiles if self.kind.descriptors or not tile.descriptors]


def cancelling_operands(
    kind: ProductKind, rows: int = PROBE_ROWS, columns: int = PROBE_COLUMNS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded (1, rows, K) and (1, K, N), N at most `columns`, whose products cancel in pairs.

    Partial sums are large and the total is small, so another order of addition survives rounding
    to bfloat16. The two products of a pair lie at a random distance along K.
    """
    generator = torch.Generator(kind.device).manual_seed(0)
    on: Any = {"generator": generator, "device": kind.device}
    half = kind.inner // 2
    order = torch.randperm(kind.inner, **on)
    first, second = order[:half], order[half : 2 * half]
    columns = min(kind.columns, columns)
    left = torch.randn(rows, kind.inner, **on)
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
    descriptors = inner * left.element_size() % ALIGNMENT_BYTES == 0 and fits(left, right)
    kind = ProductKind(inner, columns, left.dtype, transposed, left.device, descriptors)
    return _class(kind, multiply)


@cache
def _class(kind: ProductKind, multiply: Product) -> TileClass:
    segmented = segment_k(kind.columns, kind.inner) > 0
    tiles = table(kind.dtype, capability(kind.device), segmented=segmented)
    return TileClass(kind, tiles, multiply)
