"""Tile sizes of the attention kernel, with which prefill and decoding give a query the same bits.

A query's bits depend on the size of a block of keys and on where a split of the keys ends. Both
are equal for all shapes of one kind. They also depend on how a row's scores are added up within a
block, which follows from how the compiler lays a tile out over warps. On Hopper each warp gets 16
rows of its own, so each row is added up alike, and no warp repeats the product of another. That
two shapes do agree bit for bit is not assumed: `BitClass` tries it on the card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True, slots=True)
class Shape:
    """Compile-time sizes of the kernel."""

    rows: int
    """Positions by heads of a group in a tile."""
    block_n: int
    """Keys of a block."""
    num_warps: int
    num_stages: int


Shapes = dict[str, tuple[Shape, ...]]
"""`prefill` and `decode`: shapes to choose from, all in one bit class, the anchor first."""

HOPPER_64: Shapes = {
    "prefill": (Shape(128, 64, 8, 3), Shape(64, 64, 4, 3)),
    "decode": (Shape(64, 64, 4, 3), Shape(64, 64, 4, 4)),
}
"""Heads of up to 64 entries."""
HOPPER_128: Shapes = {
    "prefill": (
        Shape(128, 64, 8, 3),
        Shape(128, 64, 8, 2),
        Shape(64, 64, 4, 2),
        Shape(64, 64, 4, 3),
    ),
    "decode": (Shape(64, 64, 4, 3), Shape(64, 64, 4, 2)),
}
HOPPER_256: Shapes = {"prefill": (Shape(64, 32, 8, 2),), "decode": (Shape(64, 32, 8, 2),)}
"""The registers of 4 warps do not hold two partial results of 64 rows by 256 entries, so there are
8 warps, and the second four repeat the scores (not the products with the values)."""
AMPERE_64: Shapes = {"prefill": (Shape(64, 64, 4, 3),), "decode": (Shape(64, 64, 4, 3),)}
AMPERE_128: Shapes = {"prefill": (Shape(64, 64, 8, 2),), "decode": (Shape(64, 64, 8, 2),)}
AMPERE_256: Shapes = {"prefill": (Shape(32, 16, 8, 2),), "decode": (Shape(32, 16, 8, 2),)}
"""At most 96 KiB of shared memory; with 64 rows, windows would not fit into registers."""


def shapes(group: int, block_d: int, dtype: torch.dtype, capability: tuple[int, int]) -> Shapes:
    """The shapes for `group` heads a key-value head, of `block_d` entries (a power of 2)."""
    group_rows = triton.next_power_of_2(group)
    if dtype == torch.float32:
        # Without the matrix unit operands are held in registers, so the tile is small.
        only = (Shape(max(16, group_rows), 16, 8 if block_d > 64 else 4, 1),)
        return {"prefill": only, "decode": only}
    hopper = capability >= (9, 0)
    if block_d <= 64:
        known = HOPPER_64 if hopper else AMPERE_64
    elif block_d <= 128:
        known = HOPPER_128 if hopper else AMPERE_128
    else:
        known = HOPPER_256 if hopper else AMPERE_256
    return {phase: _holding(group_rows, ways) for phase, ways in known.items()}


def _holding(group_rows: int, ways: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shapes that hold all heads of a group; if there is none, larger ones."""
    found = tuple(shape for shape in ways if shape.rows >= group_rows)
    return found or tuple(replace(shape, rows=group_rows, num_warps=8) for shape in ways)


def block_d(dim: int) -> int:
    """Entries of a head, with padding to a power of 2."""
    return max(16, triton.next_power_of_2(dim))
