"""Section `tiles`: whether tiles beyond the tables would be faster."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from detcheck.kernels.triton import classes, matmul
from detcheck.kernels.triton.configs import Tile
from gpu_sections.clock import Clock
from gpu_sections.common import describe, random, time_or_inf
from gpu_sections.device import device

ROWS = (1, 16, 64, 256, 1024, 4096)
SHAPES = ((4096, 4096), (1024, 4096), (4096, 14336), (14336, 4096))
"""(N, K)."""


def search_space(rows: int) -> list[Tile]:
    """Tiles beyond the table's that are worth trying for a number of rows."""
    if rows <= 64:
        height = 16 if rows <= 16 else 64
        return [
            Tile(height, 64, 64, 4, 8, weights_first=True),
            Tile(height, 64, 256, 4, 2, weights_first=True),
            Tile(height, 128, 128, 8, 4, weights_first=True),
            Tile(16, 32, 64, 4, 8),  # `mma.sync`
            Tile(16, 32, 128, 2, 4),
        ]
    return [
        Tile(128, 256, 64, 8, 3, descriptors=True, persistent=True, group_m=16),
        Tile(128, 256, 64, 8, 4, descriptors=True, persistent=True),
        Tile(256, 128, 64, 8, 3, descriptors=True, persistent=True),
        Tile(128, 128, 128, 8, 3, descriptors=True),
        Tile(64, 256, 64, 4, 4, descriptors=True),
        Tile(128, 128, 64, 4, 4, descriptors=True),
    ]


def tile_search(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """For `configs.HOPPER`: the way that is chosen against others."""
    del options
    found: list[dict[str, Any]] = []
    for rows, (columns, inner) in itertools.product(device.few(ROWS), device.few(SHAPES)):
        if clock.spent():
            return {"best": found, "unfinished": True}
        found.append(searched(rows, device.size(columns), device.size(inner)))
    return {"best": found}


def searched(rows: int, columns: int, inner: int) -> dict[str, Any]:
    """One row of the result."""
    left, weight = random(1, rows, inner), random(columns, inner).t()[None]
    kind = classes.classes(left, weight, matmul.product)
    times: dict[str, float] = {}
    outside = []
    for tile in search_space(rows):
        times[describe(tile)] = product_ms(left, weight, tile)
        if times[describe(tile)] < float("inf") and not agrees(kind, tile):
            outside.append(describe(tile))
    best = min(times, key=lambda name: times[name])
    return {
        "M": rows, "N": columns, "K": inner, "best": best, "best_ms": times[best],
        "in_class": best not in outside,
        "stock_ms": time_or_inf(lambda: torch.mm(left[0], weight[0])),
        "ours_ms": time_or_inf(lambda: matmul.mm(left[0], weight[0])),
        "times_ms": times, "outside": outside,
    }  # fmt: skip


def agrees(kind: classes.TileClass, tile: Tile) -> bool:
    """Whether a tile is in the class; one that the card does not take is not."""
    try:
        return kind.agrees(tile)
    except Exception as error:
        if device.is_lost(error):
            raise
        return False


def product_ms(left: torch.Tensor, right: torch.Tensor, tile: Tile) -> float:
    """Median milliseconds; infinity for a tile that the card does not take."""
    return time_or_inf(lambda: matmul.product(left, right, None, tile))


def show_tiles(result: dict[str, Any]) -> list[str]:
    """One line a layer and number of rows."""
    lines = [
        "| M | N | K | stock ms | ours ms | best other tile | ms |",
        "|---" * 7 + "|",
    ]
    for row in result["best"]:
        other = row["best"] + ("" if row["in_class"] else " (another class)")
        lines.append(
            f"| {row['M']} | {row['N']} | {row['K']} | {row['stock_ms']:.3f} | "
            f"{row['ours_ms']:.3f} | {other} | {row['best_ms']:.3f} |"
        )
    return lines
