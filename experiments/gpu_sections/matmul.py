"""Section `matmul`: linear layers of real models against stock."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import classes, configs, matmul
from detcheck.kernels.triton.configs import Tile
from gpu_sections.clock import Clock
from gpu_sections.common import describe, geometric_mean, median_ms, random, time_or_inf

LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "Qwen3-8B": {
        "q, o": (4096, 4096),
        "k, v": (1024, 4096),
        "gate, up": (12288, 4096),
        "down": (4096, 12288),
        "lm_head": (151936, 4096),
    },
    "Llama-3-8B": {
        "gate, up": (14336, 4096),
        "down": (4096, 14336),
        "lm_head": (128256, 4096),
    },
    "SmolLM2-135M": {
        "q, o": (576, 576),
        "k, v": (192, 576),
        "gate, up": (1536, 576),
        "down": (576, 1536),
        "lm_head": (49152, 576),
    },
}
"""(N, K) of the linear layers; what Llama-3-8B shares with Qwen3-8B is measured once."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LOGITS_BYTES = 4 << 30
"""Products with larger results than this are left out."""


def layer_shapes() -> Iterator[tuple[str, str, int, int]]:
    """(model, layer, N, K)."""
    for model, layers in LAYERS.items():
        for layer, (columns, inner) in layers.items():
            yield model, layer, columns, inner


def matmul_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16 linear layers: stock (cuBLAS), ours, and batch_invariant_ops where it is there."""
    del options
    other = batch_invariant_ops_product()
    measured = []
    for rows in sorted(ROWS, key=lambda n: (n not in (1, 16, 256, 4096), n)):
        for model, layer, columns, inner in layer_shapes():
            if rows * columns * 2 > LOGITS_BYTES or (layer == "lm_head" and rows > 1024):
                continue
            if clock.spent():
                return {"rows": measured, "unfinished": True}
            left, weight = random(rows, inner), random(columns, inner)
            stock = median_ms(lambda x=left, w=weight: F.linear(x, w))
            ours = median_ms(lambda x=left, w=weight: matmul.mm(x, w.t()))
            row = {"model": model, "layer": layer, "M": rows, "N": columns, "K": inner}
            row |= {"stock_ms": stock, "ours_ms": ours, "ratio": stock / ours}
            row["tile"] = describe(tile_of(left, weight))
            if configs.segment_k(columns, inner):
                row["uncut_ms"] = uncut_ms(left, weight)
            if other is not None:
                row["batch_invariant_ops_ms"] = median_ms(lambda x=left, w=weight: other(x, w.t()))
            measured.append(row)
    return {"rows": measured}


def uncut_ms(left: torch.Tensor, weight: torch.Tensor) -> float:
    """Of the class without segments of K: its fastest tile, where the sums of ours are cut."""
    x, right = left[None], weight.t()[None]
    tiles = classes.classes(x, right, matmul.product).tiles
    limit = next(limit for limit, _ in tiles if len(left) <= limit)
    found = (tile for largest, tile in tiles if largest == limit)
    return min(time_or_inf(lambda t=tile: matmul.product(x, right, None, t)) for tile in found)


def tile_of(left: torch.Tensor, weight: torch.Tensor) -> Tile:
    """The tile that was chosen for a linear layer."""
    return classes.classes(left[None], weight.t()[None], matmul.product).tile(len(left))


def batch_invariant_ops_product() -> Callable[..., torch.Tensor] | None:
    """The other library's matrix product, where it can be imported."""
    try:
        from batch_invariant_ops import matmul_persistent
    except Exception:
        return None
    return matmul_persistent


def show_matmul(result: dict[str, Any]) -> list[str]:
    """Speed relative to stock (1 = as fast, higher is faster), geometric mean over the layers."""
    rows = result["rows"]
    models = list(LAYERS)
    lines = [
        "stock time / ours (1: as fast), geometric mean over layers; worst layer in brackets",
        "",
    ]
    lines += ["| M | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for count in ROWS:
        cells = []
        for model in models:
            ratios = [row["ratio"] for row in rows if row["M"] == count and row["model"] == model]
            cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "–")
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    ratios = [row["ratio"] for row in rows]
    lines.append("")
    lines.append(
        f"all: {geometric_mean(ratios):.3f} (goal 0.95), "
        f"worst {min(ratios, default=0):.2f} (goal 0.85)"
    )
    cut = [row for row in rows if "uncut_ms" in row]
    if cut:
        ours = geometric_mean([row["ratio"] for row in cut])
        uncut = geometric_mean([row["stock_ms"] / row["uncut_ms"] for row in cut])
        lines.append(f"layers whose sums are cut: {ours:.3f}, without segments {uncut:.3f}")
        lines += [
            f"- M={row['M']} N={row['N']} K={row['K']}: stock {row['stock_ms']:.4f} ms, with "
            f"segments {row['ours_ms']:.4f}, without {row['uncut_ms']:.4f}"
            for row in sorted(cut, key=lambda row: row["M"])
        ]
    others = [
        row["stock_ms"] / row["batch_invariant_ops_ms"]
        for row in rows
        if "batch_invariant_ops_ms" in row
    ]
    if others:
        lines.append(f"batch_invariant_ops: {geometric_mean(others):.3f}, worst {min(others):.2f}")
    return lines
