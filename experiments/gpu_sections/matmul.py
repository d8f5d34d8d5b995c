"""Section `matmul`: linear layers of real models against stock."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import classes, configs, matmul
from detcheck.kernels.triton.bit_class import milliseconds
from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.cublas import Library
from gpu_sections.clock import Clock
from gpu_sections.common import describe, geometric_mean, random, time_or_inf
from gpu_sections.device import device
from gpu_sections.layers import linear_shapes

ROWS = (1, 16, 64, 256, 2048, 2, 4, 8, 32, 128, 512, 1024, 4096, 8192)
"""The most telling ones first."""
MOST_LOGITS = 1024
"""Rows of logits beyond which products are left out; no model needs more at once."""
ROTATED_BYTES = 100 << 20
"""Of the weights that calls take in turn, so that none is in the cache: twice its size."""
MOST_WEIGHTS = 32


def matmul_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16 linear layers: stock (cuBLAS), ours, our tiles alone, batch_invariant_ops."""
    del options
    other = batch_invariant_ops_product()
    measured: list[dict[str, Any]] = []
    for rows, model, layer, columns, inner in device.few(cases()):
        if clock.spent():
            return {"rows": measured, "unfinished": True}
        row = {"model": model, "layer": layer, "M": rows, "N": columns, "K": inner}
        left = random(device.size(rows), device.size(inner))
        measured.append(row | times(left, device.size(columns), other))
    return {"rows": measured}


def cases() -> list[tuple[int, str, str, int, int]]:
    """(M, model, layers, N, K), the most telling numbers of rows first."""
    return [
        (rows, *shape)
        for rows in ROWS
        for shape in linear_shapes()
        if shape[1] != "lm_head" or rows <= MOST_LOGITS
    ]


def times(
    left: torch.Tensor, columns: int, other: Callable[..., torch.Tensor] | None
) -> dict[str, Any]:
    """Milliseconds of one layer, and the way that was chosen for it."""
    weights = rotated(columns, left.shape[1])
    first = weights[0]

    def timed(function: Callable[[torch.Tensor], Any]) -> float:
        return time_or_inf([partial(function, weight) for weight in weights])

    stock = timed(lambda weight: F.linear(left, weight))
    ours = timed(lambda weight: matmul.mm(left, weight.t()))
    row: dict[str, Any] = {"stock_ms": stock, "ours_ms": ours, "ratio": stock / ours}
    way = way_of(left, first)
    row["way"] = "cuBLASLt" if isinstance(way, Library) else describe(way)
    if isinstance(way, Library):
        tile = tile_of(left, first)
        row["tile_ms"] = timed(
            lambda weight: matmul.product(left[None], weight.t()[None], None, tile)
        )
    if other is not None:
        row["batch_invariant_ops_ms"] = timed(lambda weight: other(left, weight.t()))
    return row


def rotated(columns: int, inner: int) -> list[torch.Tensor]:
    """Weights (N, K) that calls take in turn; each comes again when the cache has forgotten it."""
    count = min(MOST_WEIGHTS, 1 + ROTATED_BYTES // (2 * columns * inner))
    return [random(columns, inner) for _ in range(count)]


def class_of(left: torch.Tensor, weight: torch.Tensor) -> classes.TileClass:
    """The class of a linear layer."""
    return classes.classes(left[None], weight.t()[None], matmul.product)


def way_of(left: torch.Tensor, weight: torch.Tensor) -> classes.Way:
    """The way that was chosen for a linear layer."""
    return class_of(left, weight).way(len(left))


def tile_of(left: torch.Tensor, weight: torch.Tensor) -> Tile:
    """The fastest of our tiles for a linear layer that are in the class."""
    kind = class_of(left, weight)
    tiles = [way for way in kind.ways(len(left)) if isinstance(way, Tile)]

    def time(tile: Tile) -> float:
        return milliseconds(
            lambda: matmul.product(left[None], weight.t()[None], None, tile), left.device
        )

    in_order = sorted(tiles, key=time)  # those that do not run are last
    return next((tile for tile in in_order if kind.agrees(tile)), configs.anchor(kind.tiles))


def batch_invariant_ops_product() -> Callable[..., torch.Tensor] | None:
    """The other library's matrix product, if it can be imported."""
    try:
        from batch_invariant_ops import matmul_persistent
    except Exception:
        return None
    return matmul_persistent


def show_matmul(result: dict[str, Any]) -> list[str]:
    """Speed relative to stock (1 is as fast, more is faster), geometric mean over the layers."""
    rows = result["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        "stock time / ours (1: as fast), geometric mean over layers; worst layer in brackets",
        "",
    ]
    lines += ["| M | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for count in sorted({row["M"] for row in rows}):
        cells = []
        for model in models:
            ratios = [row["ratio"] for row in rows if row["M"] == count and row["model"] == model]
            cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "–")
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    ratios = [row["ratio"] for row in rows]
    worst = min(ratios, default=0)
    lines += ["", f"all: {geometric_mean(ratios):.3f} (goal 0.95), worst {worst:.2f} (goal 0.85)"]
    return lines + show_library(rows) + show_other(rows)


def show_library(rows: list[dict[str, Any]]) -> list[str]:
    """Layers that cuBLASLt computes, against our tiles."""
    by_library = [row for row in rows if "tile_ms" in row]
    if not by_library:
        return []
    ours = geometric_mean([row["ratio"] for row in by_library])
    tiles = geometric_mean([row["stock_ms"] / row["tile_ms"] for row in by_library])
    return [
        f"cuBLASLt was chosen for {len(by_library)} of {len(rows)} products: {ours:.3f} of stock's "
        f"speed, our tiles there {tiles:.3f}"
    ]


def show_other(rows: list[dict[str, Any]]) -> list[str]:
    """batch_invariant_ops, if it was measured."""
    name = "batch_invariant_ops_ms"
    others = [row["stock_ms"] / row[name] for row in rows if name in row]
    if not others:
        return []
    return [f"batch_invariant_ops: {geometric_mean(others):.3f}, worst {min(others):.2f}"]
