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
    (64, Tile(64, 64, 128, 4, 4)),
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


def table(dtype: torch.dtype, capability: tuple[int, int]) -> Table:
    """The table of a dtype (bfloat16, float16 or float32) on an architecture."""
    half = HOPPER if capability >= (9, 0) else AMPERE
    return FLOAT32 if dtype == torch.float32 else half


def anchor(tiles: Table) -> Tile:
    """The tile whose bits all others must give."""
    return tiles[-1][1]
