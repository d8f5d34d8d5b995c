"""Tiles of the matrix product: which to try for how many rows, and what makes a bitwise class.

What a result's bits depend on is the order of accumulation over K: the matrix instruction
(`mma.sync` or `wgmma`, both 16 deep in 16-bit types), and where partial sums are added. Tile sizes
choose neither on one architecture, as long as the instruction stays the same, nor does the way
tiles come into shared memory. So each table below keeps to one instruction, and trades the rest for
speed. That the tiles do agree bit for bit is not assumed: `classes.py` tries it on the card before
a tile is used, and times those that agree.

On sm_90 `wgmma` computes 64 rows at a time, far more than a decoding step has. There the product
is turned round (`weights_first`): the weight's columns fill the 64 rows of the instruction, and
the few rows of the input become its narrow side. So M = 1 and M = 8192 share an instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ALL_ROWS = 1 << 62
NARROW = 1024
"""Most columns of a weight whose sums are cut: 16 tiles of 64 on 132 processors."""
SEGMENT = 512


@dataclass(frozen=True, slots=True)
class Tile:
    """One way to compute a product; everything here is a compile-time constant of the kernel."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    weights_first: bool = False
    """Whether the right-hand operand is the left one of the matrix instruction."""
    descriptors: bool = False
    """Whether the copy unit (TMA) loads the operands, where it takes them as they lie."""
    persistent: bool = False
    """With descriptors: whether as many programs as processors share the tiles."""
    group_m: int = 8
    """Tiles along M that are computed together, to find the weights in L2."""


Table = tuple[tuple[int, Tile], ...]
"""(largest M, tile), in growing order; the last tile is also the anchor of the class. Tiles with
the same largest M are alternatives: the fastest on the card is used, the first where none is timed.
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
    *((limit, tile) for limit in (512, 1024, 2048, ALL_ROWS) for tile in _HOPPER_WIDE),
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
    if dtype == torch.float32:
        return FLOAT32
    return HOPPER if capability >= (9, 0) else AMPERE


def anchor(tiles: Table) -> Tile:
    """The tile whose bits all others must give."""
    return tiles[-1][1]


def segment_k(columns: int, inner: int) -> int:
    """Length of the segments that a sum over K is cut into; 0: one sum from start to end.

    A function of the weight's shape (N, K) alone, so every M adds up in the same order. Segments
    let a weight with few columns (keys and values of grouped heads) be streamed by more processors
    than it has tiles, which is what decoding waits for; prefill pays one addition a segment.
    `make gpu` measures both; not measured yet.
    """
    return SEGMENT if columns <= NARROW and inner >= 4 * SEGMENT else 0
