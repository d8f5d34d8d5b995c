"""Which numbers of rows share one bitwise class of a matrix product on this CPU.

oneDNN and MKL choose a kernel by shape. For most numbers of rows M the kernels add up over K in
the same order and a row's result does not depend on M; for a few (M = 1 in bfloat16 at large K,
M < 4 in float32) it does. Within one shape a row's result does not depend on its neighbours, nor,
but for products of few columns, on its position. So the classes are found once per (K, N, dtype,
layout, threads), by experiment: the rows of a call of M rows are compared with those of an anchor
call, bit for bit, on data made to show a change of order. A call whose M is in the anchor's class
runs as it is; another is padded up to the next M that is; a large one is cut into blocks. Where no
larger M agrees a call is cut into tiles of the anchor's size, and into single rows where a row's
position in the anchor call matters. Rounding to bfloat16 hides almost every difference of order,
so the probe's columns cancel: each product has a partner of nearly the opposite value at a random
distance, partial sums are large and the total is small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ANCHOR_ROWS = 32
"""The class of a call of this many rows is the one that every call is brought into."""
DENSE_ROWS = 64
"""Up to here every number of rows is probed for itself."""
ROW_STEP = 16
"""Above, rows are padded up to a multiple of this, so that few sizes are probed."""
BLOCK_ROWS = 1024
"""Larger calls are cut into blocks of this many rows."""
PROBED_ELEMENTS = 32768
"""Results by which a number of rows is judged; bfloat16 shows a change in about one of 256."""
PATTERN_COLUMNS = 2048
"""Different columns of the probe's right-hand side."""
PROBED_ROWS = 128
"""Rows of the probe's left-hand side, unless a number of rows needs more."""
KEPT_BYTES = 128 << 20
"""Probe operands and results up to this size are kept for the next number of rows."""
CACHE_LINE_BYTES = 64
"""Vector kernels may take another path for operands that start off a cache line."""

MatMul = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Left = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ProductShape:
    """What a row class may depend on, besides the number of rows."""

    inner: int
    """K, the length of the sums."""
    columns: int
    """N."""
    dtype: torch.dtype
    transposed: bool
    """Whether the right-hand side is the transpose of a contiguous (N, K) tensor."""
    biased: bool
    misalignment: int = 0
    """Bytes by which the right-hand side starts off a cache line, as mapped weights may."""


@dataclass(slots=True)
class RowClasses:
    """Padded row counts for one shape, probed when they are first asked for."""

    shape: ProductShape
    multiply: MatMul
    """The stock product, (rows, K) x (K, N) to (rows, N)."""
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda right: right
    """Turns the (K, N) operand into what `multiply` takes, such as a packed weight."""
    _padded: dict[int, int | None] = field(default_factory=dict)
    _tile_rows: int = 0
    """ANCHOR_ROWS, or 1 where a row's position matters; 0 before it was looked at."""
    _right: torch.Tensor | None = None
    """The probe's (K, N) operand, prepared; kept unless it is large."""
    _anchored: tuple[torch.Tensor, torch.Tensor] | None = None
    """The probe's (rows, K) operand and its result by anchor calls, kept unless they are large."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def padded_rows(self, rows: int) -> int | None:
        """The smallest number of rows in the anchor's class that holds `rows` of them.

        `rows` is at most BLOCK_ROWS. None where there is none: see `tile_rows`.
        """
        if rows not in self._padded:
            with self._lock:
                self._padded[rows] = self._search(rows)
        return self._padded[rows]

    def fits(self, rows: int) -> bool:
        """True if a call of `rows` rows is known to be in the anchor's class as it is."""
        return self._padded.get(rows) == rows

    @property
    def tile_rows(self) -> int:
        """Rows of the calls that all others are cut into if `padded_rows` gives None."""
        return self._tile_rows

    def apply(self, multiply: Left, left: torch.Tensor) -> torch.Tensor:
        """`multiply` (M, K), contiguous and on a cache line, in calls of the anchor's class.

        `multiply` is the stock product by one right-hand side of this shape.
        """
        if left.shape[0] > BLOCK_ROWS:
            blocks = left.split(BLOCK_ROWS)
            return torch.cat([self.apply(multiply, _on_cache_line(block)) for block in blocks])
        padded = self.padded_rows(left.shape[0])
        if padded is not None:
            return _padded_to(padded, multiply, left)
        size = self.tile_rows
        tiles = left.split(size)
        return torch.cat([_padded_to(size, multiply, _on_cache_line(tile)) for tile in tiles])

    def _search(self, rows: int) -> int | None:
        right = self._probe_right()
        if not self._tile_rows:
            self._tile_rows = 1 if self._position_matters(right) else ANCHOR_ROWS
        if self._tile_rows == 1:
            return None
        first_step = -(-max(rows, DENSE_ROWS + 1) // ROW_STEP) * ROW_STEP
        dense = range(rows, DENSE_ROWS + 1)
        for candidate in (*dense, *range(first_step, BLOCK_ROWS + 1, ROW_STEP)):
            if self._in_class(candidate, right):
                return candidate
        return None

    def _position_matters(self, right: torch.Tensor) -> bool:
        """Whether rows of an anchor call are otherwise one place further on."""
        columns = min(self.shape.columns, PATTERN_COLUMNS)
        left, anchor = self._anchor(-(-PROBED_ELEMENTS // columns), right)
        moved = torch.cat([self.multiply(x, right) for x in left.roll(1, 0).split(ANCHOR_ROWS)])
        return not torch.equal(moved, anchor.roll(1, 0))

    def _in_class(self, rows: int, right: torch.Tensor) -> bool:
        """Whether each row of a call of `rows` is what it is in a call of ANCHOR_ROWS.

        Of few rows and columns a single call shows little, so it is made as often as it takes to
        see PROBED_ELEMENTS.
        """
        columns = min(self.shape.columns, PATTERN_COLUMNS)
        calls = max(1, -(-PROBED_ELEMENTS // (rows * columns)))
        left, anchor = self._anchor(rows * calls, right)
        return all(
            torch.equal(self.multiply(left[at : at + rows].clone(), right), anchor[at : at + rows])
            for at in range(0, rows * calls, rows)
        )

    def _anchor(self, rows: int, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """At least `rows` rows of the probe, and what they are in calls of ANCHOR_ROWS."""
        if self._anchored is not None and len(self._anchored[0]) >= rows:
            return self._anchored
        left = self._probe_left(-(-max(rows, PROBED_ROWS) // ANCHOR_ROWS) * ANCHOR_ROWS)
        anchor = torch.cat([self.multiply(block, right) for block in left.split(ANCHOR_ROWS)])
        if (left.nbytes + anchor.nbytes) <= KEPT_BYTES:
            self._anchored = left, anchor
        return left, anchor

    def _probe_left(self, rows: int) -> torch.Tensor:
        """Seeded (rows, K): the second of each pair of columns is the first, a little off."""
        first, second = _partners(self.shape.inner)
        left, jitter = self._random(0, (rows, self.shape.inner), (rows, len(first)))
        left[:, second] = left[:, first] * (1 + jitter / 128)
        return left.to(self.shape.dtype)

    def _probe_right(self) -> torch.Tensor:
        """Seeded (K, N), in the shape's layout: each second row of a pair is minus the first."""
        if self._right is not None:
            return self._right
        shape = self.shape
        first, second = _partners(shape.inner)
        (pattern,) = self._random(1, (min(shape.columns, PATTERN_COLUMNS), shape.inner))
        pattern[:, second] = -pattern[:, first]
        repeats = -(-shape.columns // len(pattern))
        weight = pattern.to(shape.dtype).repeat(repeats, 1)[: shape.columns]
        right = self.prepare(self._laid_out(weight))
        if weight.nbytes <= KEPT_BYTES:
            self._right = right
        return right

    def free_probe(self) -> None:
        """Free the probe's operands. They are made again if another number of rows is probed."""
        with self._lock:
            self._right = self._anchored = None

    def _random(self, seed: int, *sizes: tuple[int, int]) -> list[torch.Tensor]:
        """Seeded normal values, as precise as the shape's dtype: of less, products are exact."""
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.promote_types(self.shape.dtype, torch.float32)
        return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]

    def _laid_out(self, weight: torch.Tensor) -> torch.Tensor:
        """(N, K) weight as the (K, N) right-hand side, in the shape's layout and alignment."""
        source = weight if self.shape.transposed else weight.t()
        skip = self.shape.misalignment // weight.element_size()
        storage = torch.empty(weight.numel() + skip, dtype=weight.dtype)
        right = storage[skip:].view(source.shape)
        right.copy_(source)
        return right.t() if self.shape.transposed else right


class ClassTable:
    """Row classes by shape and by the settings that change numerics."""

    def __init__(self, make: Callable[[ProductShape], RowClasses]):
        self._make = make
        self._classes: dict[tuple[ProductShape, tuple[object, ...]], RowClasses] = {}

    def find(self, shape: ProductShape, settings: tuple[object, ...]) -> RowClasses:
        """The classes of one shape under these settings; nothing is probed yet if they are new."""
        key = shape, settings
        classes = self._classes.get(key)
        if classes is None:
            classes = self._classes.setdefault(key, self._make(shape))
        return classes

    def free_probes(self) -> None:
        """Free the operands of every probe; what was found is kept."""
        for classes in tuple(self._classes.values()):
            classes.free_probe()


def _partners(inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices along K in pairs at random distances, (K // 2,) each; an odd one is left out."""
    order = torch.randperm(inner, generator=torch.Generator().manual_seed(2))
    half = inner // 2
    return order[:half], order[half : 2 * half]


def _padded_to(padded: int, multiply: Left, left: torch.Tensor) -> torch.Tensor:
    rows = left.shape[0]
    if padded == rows:
        return multiply(left)
    if rows == 1:  # decoding of one request: as few calls as possible
        return multiply(left.expand(padded, -1).contiguous())[:1]
    wide = left.new_zeros((padded, left.shape[1]))
    wide[:rows] = left
    return multiply(wide)[:rows]


def _on_cache_line(x: torch.Tensor) -> torch.Tensor:
    return x.clone() if x.data_ptr() % CACHE_LINE_BYTES else x
