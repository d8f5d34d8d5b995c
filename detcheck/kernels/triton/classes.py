"""Which ways to multiply give the same bits on this card, and the fastest of them.

Tiles of one table ought to agree, since they add up over K with the same instruction in the same
order, and so ought cuBLASLt without split-K. Whether they do is up to the compiler, the library
and the card. So before a way is used for a kind of product (K, N, dtype, layout, device), it is
compared with the anchor tile. The data of that comparison cancel, so that another order of
addition shows in the bits. A way that differs is not used. Among those that agree, the one that is
fastest on the operands at hand serves this kind and range of M from then on; the choice changes no
bit. The first call of a kind and range therefore takes longer than later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from detcheck.kernels.triton import cublas
from detcheck.kernels.triton.bit_class import BitClass
from detcheck.kernels.triton.configs import Table, Tile, anchor, table
from detcheck.kernels.triton.cublas import Library
from detcheck.kernels.triton.descriptors import fits
from detcheck.kernels.triton.launch import ALIGNMENT_BYTES, capability

PROBE_ROWS = 32
PROBE_COLUMNS = 512
"""Columns are independent and add up in the same order, so more of them would show no more."""
COLUMNS_AT_ONCE = 4096
"""In float32. Those of a whole vocabulary would take gigabytes, beside the model."""

Way = Tile | Library
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Any], torch.Tensor]
"""(1, M, K) x (1, K, N) with a bias or None, in a way; returns (1, M, N)."""


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
    library: bool = False
    """True if cuBLASLt may be tried."""
    biased: bool = False
    """True if cuBLASLt would add a bias; tiles are compared without one."""


class TileClass:
    """The ways of one kind that agree with its anchor, tried when they are first asked for."""

    def __init__(self, kind: ProductKind, tiles: Table, multiply: Product):
        self.kind = kind
        self.tiles = tiles
        self.multiply = multiply
        self._class = BitClass[Way](anchor(tiles), self.agrees)

    def way(self, rows: int, time: Callable[[Way], float] | None = None) -> Way:
        """The way for M = `rows`: of those for this M in the class, the fastest.

        `time` gives the milliseconds of a way; without it the first one is used. If no way for
        this M is in the class, a tile for the next larger M is used. While a CUDA graph is
        captured, an M that nothing was chosen for before gets the anchor.
        """
        limit = self._limit(rows)

        def groups() -> Iterator[list[Way]]:
            yield self._candidates(limit)
            larger = dict.fromkeys(largest for largest, _ in self.tiles if largest > limit)
            yield from map(self._tiles, larger)

        return self._class.choose(limit, groups, time)

    def ways(self, rows: int) -> list[Way]:
        """The ways to try for M = `rows`, and for all M of its range."""
        return self._candidates(self._limit(rows))

    def usable(self, rows: int) -> list[Way]:
        """Those of them that are in the class."""
        return self._class.members(self.ways(rows))

    def agrees(self, way: Way) -> bool:
        """True if a way gives the anchor's bits on the probe."""
        first = anchor(self.tiles)
        if isinstance(way, Tile):
            left, right = cancelling_operands(self.kind)
            expected = self.multiply(left, right, None, first)
            return torch.equal(self.multiply(left, right, None, way), expected)
        left, right = cancelling_operands(self.kind, cublas.ROWS_STEP, self.kind.columns)
        bias = right[0, :7].sum(0) if self.kind.biased else None
        expected = self.multiply(left, right, bias, first)
        return cublas.agrees(way, left[0], right[0], bias, expected[0])

    def _limit(self, rows: int) -> int:
        return next(limit for limit, _ in self.tiles if rows <= limit)

    def _candidates(self, limit: int) -> list[Way]:
        below = max((each for each, _ in self.tiles if each < limit), default=0)
        libraries = cublas.ways(self.kind.columns, below, limit) if self.kind.library else []
        return [*libraries, *self._tiles(limit)]

    def _tiles(self, limit: int) -> list[Way]:
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
    on: Any = {"generator": generator, "device": kind.device, "dtype": torch.float32}
    half = kind.inner // 2
    order = torch.randperm(kind.inner, generator=generator, device=kind.device)
    first, second = order[:half], order[half : 2 * half]
    columns = min(kind.columns, columns)
    left = torch.randn(rows, kind.inner, **on)
    left[:, second] = left[:, first] * (1 + torch.randn(half, **on) / 128)
    right = torch.empty(columns, kind.inner, dtype=kind.dtype, device=kind.device)
    for some in right.split(COLUMNS_AT_ONCE):
        wide = torch.randn(some.shape, **on)
        wide[:, second] = -wide[:, first]
        some.copy_(wide)
    right = right.t() if kind.transposed else right.t().contiguous()
    return left.to(kind.dtype)[None], right[None]


def classes(
    left: torch.Tensor, right: torch.Tensor, multiply: Product, bias: torch.Tensor | None = None
) -> TileClass:
    """The class of the product of `left` (B, M, K) and `right` (B, K, N), plus a bias or None."""
    inner, columns = right.shape[1:]
    transposed = right.stride(2) != 1
    descriptors = inner * left.element_size() % ALIGNMENT_BYTES == 0 and fits(left, right)
    library = cublas.fits(left, right, bias)
    biased = library and bias is not None
    device = left.device
    kind = ProductKind(inner, columns, left.dtype, transposed, device, descriptors, library, biased)
    return _class(kind, multiply)


@cache
def _class(kind: ProductKind, multiply: Product) -> TileClass:
    return TileClass(kind, table(kind.dtype, capability(kind.device)), multiply)
