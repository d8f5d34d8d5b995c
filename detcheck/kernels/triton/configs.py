"""Tiles of the matrix product: which tiles to try for how many rows, and what makes a class.

Two tiles are in one class if they give bitwise equal results. A result's bits depend on the order
of accumulation over K: on the matrix instruction (`mma.sync` or `wgmma`, both 16 deep in 16-bit
types), and on where partial sums are added. On one architecture, tile sizes change neither as long
as the instruction stays the same. Nor does the way in which tiles come into shared memory. So each
table below keeps to one instruction and trades the rest for speed. That its tiles do agree is not
assumed: `classes.py` tries each tile on the card before it is used, and times those that agree.

On sm_90 `wgmma` computes 64 rows at a time, far more than a decoding step has. There the product
is turned round (`weights_first`): the weight's columns fill the 64 rows of the instruction, and
the few rows of the input become its narrow side. So M = 1 and M = 8192 share an instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ALL_ROWS = 1 << 62
WIDEST_CUT = 4096
"""Most columns of a weight whose sums are cut into segments."""
SHORTEST_SEGMENT = 512
"""Shorter segments would cost more in partial sums than the additional programs gain."""
SEGMENT_STEP = 128
"""Segments are multiples of this, and so of every `block_k` in the tables."""
COLUMN_TILE = 64
"""Columns of a tile with few rows: `wgmma` computes no fewer."""
PROGRAMS_WANTED = 120
"""Programs that a product of few rows should have: nine tenths of the 132 processors of Hopper."""
THREAD_ACCUMULATORS = 64
"""Entries of a tile that a thread may hold if its sums are cut; it needs twice the registers."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One way to compute a product. Each field is a compile-time constant of the kernel."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    weights_first: bool = False
    """True if the right-hand operand is the left one of the matrix instruction."""
    descriptors: bool = False
    """True if the copy unit (TMA) loads the operands; not every layout in memory allows it."""
    persistent: bool = False
    """With descriptors: true if as many programs as processors share the tiles."""
    group_m: int = 8
    """Tiles along M that are computed together, so that they find the weights in the L2 cache."""

    @property
    def takes_segments(self) -> bool:
        """True if the registers hold a sum of segments beside the current segment's sum."""
        return self.block_m * self.block_n <= THREAD_ACCUMULATORS * 32 * self.num_warps


Table = tuple[tuple[int, Tile], ...]
"""(largest M, tile), in growing order; the last tile is also the anchor of the class. Tiles with
the same largest M are alternatives: the fastest on the card is used. Without timing, the first is.
"""

_HOPPER_WIDE = (
    Tile(128, 256, 64, 8, 3, descriptors=True, persistent=True),
    Tile(128, 256, 64, 8, 4, descriptors=True),
    Tile(128, 128, 64, 8, 4, descriptors=True, persistent=True),
    Tile(128, 128, 64, 8, 4, descriptors=True),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 256, 64, 8, 4),
)
_HOPPER_256 = (
    Tile(128, 64, 64, 4, 4),
    Tile(128, 64, 64, 4, 6, descriptors=True),
    Tile(64, 128, 64, 4, 5, descriptors=True),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 128, 64, 8, 4, descriptors=True),
    Tile(128, 256, 64, 8, 4, descriptors=True),
)
_HOPPER_NARROW = (Tile(128, 64, 64, 4, 6, descriptors=True), Tile(128, 64, 64, 4, 4))
"""For weights of few columns, whose wide tiles would be too few."""
HOPPER: Table = (
    (16, Tile(16, 64, 64, 4, 6, weights_first=True)),
    (16, Tile(16, 64, 128, 4, 5, weights_first=True)),
    (16, Tile(16, 128, 64, 4, 5, weights_first=True)),
    (32, Tile(32, 64, 64, 4, 5, weights_first=True)),
    (32, Tile(32, 64, 128, 4, 4, weights_first=True)),
    (32, Tile(32, 128, 64, 4, 4, weights_first=True)),
    (64, Tile(64, 64, 64, 4, 4)),
    (64, Tile(64, 64, 64, 4, 6)),
    (64, Tile(64, 128, 64, 4, 4, weights_first=True)),
    (64, Tile(64, 64, 64, 4, 6, descriptors=True)),
    (128, Tile(128, 64, 64, 4, 4)),
    (128, Tile(64, 64, 64, 4, 6)),
    (128, Tile(64, 64, 64, 4, 6, descriptors=True)),
    (128, Tile(128, 64, 64, 4, 6, descriptors=True)),
    (128, Tile(128, 128, 64, 8, 4)),
    *((256, tile) for tile in _HOPPER_256),
    *((512, tile) for tile in (*_HOPPER_WIDE, *_HOPPER_NARROW)),
    *((1024, tile) for tile in (*_HOPPER_WIDE, *_HOPPER_NARROW)),
    *((limit, tile) for limit in (2048, ALL_ROWS) for tile in _HOPPER_WIDE),
)
"""Compute capability 9.0 and up: `wgmma` throughout; up to 192 KiB of shared memory."""

AMPERE: Table = (
    (16, Tile(16, 64, 64, 4, 5)),
    (32, Tile(32, 64, 64, 4, 4)),
    (64, Tile(64, 64, 64, 4, 4)),
    (ALL_ROWS, Tile(128, 128, 64, 8, 3)),
)
"""8.0 to 8.9: `mma.sync` m16n8k16 throughout; at most 96 KiB, which 8.6 and 8.9 have too."""

FLOAT32: Table = (
    (16, Tile(16, 64, 32, 4, 3)),
    (ALL_ROWS, Tile(64, 64, 32, 4, 3)),
)
"""Fused multiply-adds in the order of K, never TF32."""


def table(dtype: torch.dtype, capability: tuple[int, int], *, segmented: bool = False) -> Table:
    """The table of a dtype (bfloat16, float16 or float32) on an architecture.

    `segmented` leaves out tiles whose registers do not hold two sums.
    """
    half = HOPPER if capability >= (9, 0) else AMPERE
    tiles = FLOAT32 if dtype == torch.float32 else half
    return tuple(entry for entry in tiles if entry[1].takes_segments or not segmented)


def anchor(tiles: Table) -> Tile:
    """The tile whose bits all others must give."""
    return tiles[-1][1]


def segment_k(columns: int, inner: int) -> int:
    """Length of the segments that a sum over K is cut into; 0 for one sum from start to end.

    It depends on the weight's shape (N, K) alone, so every M adds up in the same order. A decoding
    step waits for the weight to be read. A weight of few columns has fewer tiles than the GPU has
    processors, so segments of its own rows give the others work. Prefill pays one more addition a
    segment, and cannot use the widest tiles. `make gpu` measures both; not measured yet.
    """
    if columns > WIDEST_CUT:
        return 0
    tiles = -(-columns // COLUMN_TILE)
    count = min(-(-PROGRAMS_WANTED // tiles), inner // SHORTEST_SEGMENT)
    if count < 2:
        return 0
    return -(-inner // (count * SEGMENT_STEP)) * SEGMENT_STEP
