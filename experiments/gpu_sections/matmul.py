"""Section `matmul`: linear layers of real models against stock."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import classes, configs, matmul
from detcheck.kernels.triton.configs import Tile
from gpu_sections.clock import Clock
from gpu_sections.common import describe, geometric_mean, random, time_or_inf
from gpu_sections.device import device
from gpu_sections.layers import linear_shapes

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
FIRST_ROWS = (1, 16, 256, 4096)
"""Measured before the others."""
MOST_LOGITS = 1024
"""Rows of logits beyond which products are left out; no model needs more at once."""


def matmul_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16 linear layers: stock (cuBLAS), ours, and batch_invariant_ops if it is installed."""
    del options
    other = batch_invariant_ops_product()
    measured: list[dict[str, Any]] = []
    for rows, model, layer, columns, inner in device.few(cases()):
        if clock.spent():
            return {"rows": measured, "unfinished": True}
        row = {"model": model, "layer": layer, "M": rows, "N": columns, "K": inner}
        left = random(device.size(rows), device.size(inner))
        weight = random(device.size(columns), device.size(inner))
        measured.append(row | times(left, weight, other))
    return {"rows": measured}


def cases() -> list[tuple[int, str, str, int, int]]:
    """(M, model, layers, N, K), the most telling numbers of rows first."""
    return [
        (rows, *shape)
        for rows in sorted(ROWS, key=lambda n: (n not in FIRST_ROWS, n))
        for shape in linear_shapes()
        if shape[1] != "lm_head" or rows <= MOST_LOGITS
    ]


def times(
    left: torch.Tensor, weight: torch.Tensor, other: Callable[..., torch.Tensor] | None
) -> dict[str, Any]:
    """Milliseconds of one layer, and the tile that was chosen for it."""
    stock = time_or_inf(lambda: F.linear(left, weight))
    ours = time_or_inf(lambda: matmul.mm(left, weight.t()))
    row: dict[str, Any] = {"stock_ms": stock, "ours_ms": ours, "ratio": stock / ours}
    row["tile"] = describe(tile_of(left, weight))
    if configs.segment_k(*weight.shape):
        row["uncut_ms"] = uncut_ms(left, weight)
    if other is not None:
        row["batch_invariant_ops_ms"] = time_or_inf(lambda: other(left, weight.t()))
    return row


def uncut_ms(left: torch.Tensor, weight: torch.Tensor) -> float:
    """Of a layer whose sums are cut: the fastest tile that computes whole sums."""
    x, right = left[None], weight.t()[None]
    tiles = configs.table(left.dtype, device.capability())
    limit = next(limit for limit, _ in tiles if len(left) <= limit)
    found = (tile for largest, tile in tiles if largest == limit)
    return min(time_or_inf(lambda t=tile: matmul.product(x, right, None, t)) for tile in found)


def tile_of(left: torch.Tensor, weight: torch.Tensor) -> Tile:
    """The tile that was chosen for a linear layer."""
    return classes.classes(left[None], weight.t()[None], matmul.product).tile(len(left))


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
    return lines + show_cut(rows) + show_other(rows)


def show_cut(rows: list[dict[str, Any]]) -> list[str]:
    """Layers whose sums are cut, against whole sums."""
    cut = [row for row in rows if "uncut_ms" in row]
    if not cut:
        return []
    ours = geometric_mean([row["ratio"] for row in cut])
    uncut = geometric_mean([row["stock_ms"] / row["uncut_ms"] for row in cut])
    lines = [f"layers whose sums are cut: {ours:.3f}, without segments {uncut:.3f}"]
    return lines + [
        f"- M={row['M']} N={row['N']} K={row['K']}: stock {row['stock_ms']:.4f} ms, with "
        f"segments {row['ours_ms']:.4f}, without {row['uncut_ms']:.4f}"
        for row in sorted(cut, key=lambda row: row["M"])
    ]


def show_other(rows: list[dict[str, Any]]) -> list[str]:
    """batch_invariant_ops, if it was measured."""
    name = "batch_invariant_ops_ms"
    others = [row["stock_ms"] / row[name] for row in rows if name in row]
    if not others:
        return []
    return [f"batch_invariant_ops: {geometric_mean(others):.3f}, worst {min(others):.2f}"]
