"""Which numbers of rows give the same bits in a matrix product on this CPU.

oneDNN and MKL choose a kernel by shape. For most numbers of rows M their kernels sum over K in the
same order, and a row's result does not depend on M. For a few it does: M = 1 in bfloat16 at large
K, M < 4 in float32. Within one shape a row's result does not depend on its neighbours. It does not
depend on its position either, except in products of few columns.

So the numbers of rows fall into classes, which are found by experiment, once per shape, dtype,
layout and settings. The rows of a call of M rows are compared, bit for bit, with the same rows in
calls of a fixed number of rows, the anchor. Then:

- a call whose M is in the anchor's class runs as it is;
- another call is padded to the next larger M in the class;
- a large call is cut into blocks;
- if no larger M is in the class, a call is cut into tiles of the anchor's size;
- if a row's position matters in the anchor call, a call is cut into single rows.

Rounding to bfloat16 hides almost every difference of order. So the probe's products cancel: each
has a partner of nearly the opposite value at a random distance along K. Partial sums are large,
totals are small, and a different order shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ANCHOR_ROWS = 32
"""Rows of the anchor calls. Every call is brought into their class."""
DENSE_ROWS = 64
"""Up to this number of rows, each number is probed."""
ROW_STEP = 16
"""Above DENSE_ROWS, rows are padded to a multiple of this, so that few numbers are probed."""
BLOCK_ROWS = 1024
"""Larger calls are cut into blocks of this many rows."""
COMPARED_RESULTS = 1024
"""Results that are compared per number of rows; a change of order shows in one of 1 to 4."""
COMPARED_HALF_RESULTS = ((1024, 32768), (1 << 62, 8192))
"""The same in half precision, by K up to the first number: rounding hides most changes. They show
in one of 50 to 80 results for K above 1024, and in one of 250 to 800 for smaller K."""
PATTERN_COLUMNS = 2048
"""Different columns of the probe's right-hand side; further columns repeat them."""
PROBED_ROWS = 128
"""Rows of the probe's left-hand side, unless a number of rows needs more."""
KEPT_BYTES = 128 << 20
"""Probe operands and results up to this size are kept for the next number of rows."""
CACHE_LINE_BYTES = 64
"""Vector kernels may compute operands that do not start on a cache line differently."""

MatMul = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Left = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ProductShape:
    """Everything about a product, except the number of rows, that its classes may depend on."""

    inner: int
    """K, the length of the sums."""
    columns: int
    """N."""
    dtype: torch.dtype
    transposed: bool
    """True if the right-hand side is the transpose of a contiguous (N, K) tensor."""
    biased: bool
    misalignment: int = 0
    """Bytes from the last cache line to the start of the right-hand side; 0 if it is on one."""


@dataclass(slots=True)
class RowClasses:
    """The class of the anchor calls, for one shape; numbers of rows are probed when needed."""

    shape: ProductShape
    multiply: MatMul
    """The stock product, (rows, K) x (K, N) to (rows, N)."""
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda right: right
    """Turns the (K, N) operand into what `multiply` takes, such as a packed weight."""
    _padded: dict[int, int | None] = field(default_factory=dict)
    _tile_rows: int = 0
    """ANCHOR_ROWS, or 1 if a row's position matters; 0 before that was probed."""
    _right: torch.Tensor | None = None
    """The probe's (K, N) operand, prepared; kept unless it is large."""
    _anchored: tuple[torch.Tensor, torch.Tensor] | None = None
    """The probe's (rows, K) operand and its result by anchor calls, kept unless they are large."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def padded_rows(self, rows: int) -> int | None:
        """The smallest number in the anchor's class that is not below `rows`.

        `rows` is at most BLOCK_ROWS. None if there is no such number: see `tile_rows`.
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
        """Rows of the calls that a call is cut into if `padded_rows` gives None for it."""
        return self._tile_rows

    def apply(self, multiply: Left, left: torch.Tensor) -> torch.Tensor:
        """The product of `left` (M, K), computed only in calls of the anchor's class.

        `multiply` is the stock product by one right-hand side of this shape. `left` is contiguous
        and starts on a cache line.
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
        """True if a row of an anchor call changes when all rows move by one place."""
        columns = min(self.shape.columns, PATTERN_COLUMNS)
        left, anchor = self._anchor(-(-self.num_compared // columns), right)
        moved = torch.cat([self.multiply(x, right) for x in left.roll(1, 0).split(ANCHOR_ROWS)])
        return not torch.equal(moved, anchor.roll(1, 0))

    def _in_class(self, rows: int, right: torch.Tensor) -> bool:
        """True if each row of a call of `rows` rows has the bits that it has in an anchor call.

        Calls are repeated on other rows until enough results were compared.
        """
        columns = min(self.shape.columns, PATTERN_COLUMNS)
        calls = max(1, -(-self.num_compared // (rows * columns)))
        left, anchor = self._anchor(rows * calls, right)
        return all(
            torch.equal(self.multiply(left[at : at + rows].clone(), right), anchor[at : at + rows])
            for at in range(0, rows * calls, rows)
        )

    @property
    def rows_are_free(self) -> bool:
        """True if a row's position in an anchor call does not matter."""
        self.padded_rows(ANCHOR_ROWS)
        return self._tile_rows == ANCHOR_ROWS

    @property
    def num_compared(self) -> int:
        """Results that must be equal before two ways to compute them count as the same."""
        if self.shape.dtype not in (torch.bfloat16, torch.float16):
            return COMPARED_RESULTS
        return next(num for inner, num in COMPARED_HALF_RESULTS if self.shape.inner <= inner)

    def _anchor(self, rows: int, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """At least `rows` rows of the probe, and their results in anchor calls."""
        if self._anchored is not None and len(self._anchored[0]) >= rows:
            return self._anchored
        left = self.probe_left(-(-max(rows, PROBED_ROWS) // ANCHOR_ROWS) * ANCHOR_ROWS)
        anchor = torch.cat([self.multiply(block, right) for block in left.split(ANCHOR_ROWS)])
        if (left.nbytes + anchor.nbytes) <= KEPT_BYTES:
            self._anchored = left, anchor
        return left, anchor

    def probe_left(self, rows: int) -> torch.Tensor:
        """Seeded (rows, K); of each pair of columns the second is the first, slightly changed."""
        first, second = _partners(self.shape.inner)
        left, jitter = self._random(0, (rows, self.shape.inner), (rows, len(first)))
        left[:, second] = left[:, first] * (1 + jitter / 128)
        return left.to(self.shape.dtype)

    def _probe_right(self) -> torch.Tensor:
        """The (K, N) transpose of `probe_weight`, in the shape's layout, prepared."""
        if self._right is not None:
            return self._right
        weight = self.probe_weight()
        right = self.prepare(self._laid_out(weight))
        if weight.nbytes <= KEPT_BYTES:
            self._right = right
        return right

    def probe_weight(self) -> torch.Tensor:
        """Seeded (N, K); of each pair of columns the second is minus the first."""
        shape = self.shape
        first, second = _partners(shape.inner)
        (pattern,) = self._random(1, (min(shape.columns, PATTERN_COLUMNS), shape.inner))
        pattern[:, second] = -pattern[:, first]
        repeats = -(-shape.columns // len(pattern))
        return pattern.to(shape.dtype).repeat(repeats, 1)[: shape.columns]

    def free_probe(self) -> None:
        """Free the probe's operands. They are made again if another number of rows is probed."""
        with self._lock:
            self._right = self._anchored = None

    def _random(self, seed: int, *sizes: tuple[int, int]) -> list[torch.Tensor]:
        """Seeded normal values, at least as precise as the shape's dtype."""
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.promote_types(self.shape.dtype, torch.float32)
        return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]

    def _laid_out(self, weight: torch.Tensor) -> torch.Tensor:
        """An (N, K) weight as (K, N) right-hand side, in the shape's layout and alignment."""
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
        """Free the operands of every probe; the classes that were found are kept."""
        for classes in tuple(self._classes.values()):
            classes.free_probe()


def _partners(inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices along K in pairs at random distances, (K // 2,) each; for odd K one is left out."""
    order = torch.randperm(inner, generator=torch.Generator().manual_seed(2))
    half = inner // 2
    return order[:half], order[half : 2 * half]


def _padded_to(padded: int, multiply: Left, left: torch.Tensor) -> torch.Tensor:
    rows = left.shape[0]
    if padded == rows:
        return multiply(left)
    if rows == 1:  # decoding of one request: as few calls as possible
        return multiply(torch.cat((left,) * padded))[:1]
    wide = left.new_zeros((padded, left.shape[1]))
    wide[:rows] = left
    return multiply(wide)[:rows]


def _on_cache_line(x: torch.Tensor) -> torch.Tensor:
    return x.clone() if x.data_ptr() % CACHE_LINE_BYTES else x
