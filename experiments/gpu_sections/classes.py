"""Section `classes`: which tiles and which cuts of K give the same bits."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from detcheck.kernels.triton import classes, configs, matmul
from detcheck.kernels.triton.configs import Tile
from gpu_sections.clock import Clock
from gpu_sections.common import DTYPES, describe, short


def candidate_tiles(dtype: torch.dtype) -> dict[str, Tile]:
    """The tables' tiles, and those that might leave the class: why, in the name."""
    tiles = configs.table(dtype, torch.cuda.get_device_capability())
    named = {f"table {describe(tile)}": tile for _, tile in tiles}
    if dtype == torch.float32:
        return named | {"block_k 64": Tile(32, 32, 64, 4, 2), "8 warps": Tile(64, 64, 32, 8, 2)}
    return named | {
        "mma.sync (16 rows)": Tile(16, 64, 64, 4, 4),
        "mma.sync (2 warps)": Tile(64, 64, 64, 2, 3),
        "block_k 32": Tile(128, 128, 32, 8, 4),
        "block_k 128": Tile(64, 128, 128, 4, 3),
        "weights first, wide": Tile(64, 128, 64, 4, 4, weights_first=True),
        "4 warps": Tile(128, 128, 64, 4, 3),
    }


def matmul_classes(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Which tiles, and which cuts of K, give the same bits on data made to tell them apart."""
    del options
    found = []
    for dtype in DTYPES:
        for inner in (576, 4096, 14336):
            if clock.spent():
                return {"kinds": found, "unfinished": True}
            found.append({"dtype": short(dtype), "K": inner, **classes_of(dtype, inner)})
    return {"kinds": found}


def classes_of(dtype: torch.dtype, inner: int) -> dict[str, Any]:
    kind = classes.Kind(inner, 512, dtype, transposed=True, device=torch.device("cuda:0"))
    left, right = classes.cancelling_operands(kind)
    tiles = candidate_tiles(dtype)
    anchor = configs.anchor(configs.table(dtype, torch.cuda.get_device_capability()))
    calls = {name: (tile, 0, False) for name, tile in tiles.items()}
    for segment in (512, 1024):
        calls[f"segments of {segment}, in turn"] = (replace(anchor, block_n=128), segment, False)
        calls[f"segments of {segment}, side by side"] = (next(iter(tiles.values())), segment, True)
    groups: list[tuple[torch.Tensor, list[str]]] = []
    problems = {}
    for name, (tile, segment, parallel) in calls.items():
        try:
            out = matmul.product(left, right, None, tile, segment, parallel)
        except Exception as error:  # a tile that this card does not take
            problems[name] = f"{type(error).__name__}: {error}"[:120]
            continue
        same = next((names for bits, names in groups if torch.equal(bits, out)), None)
        if same is None:
            groups.append((out, [name]))
        else:
            same.append(name)
    return {"classes": [names for _, names in groups], "refused": problems}


def show_classes(result: dict[str, Any]) -> list[str]:
    lines = []
    for kind in result["kinds"]:
        parts = " | ".join(", ".join(names) for names in kind["classes"])
        lines.append(f"- {kind['dtype']} K={kind['K']}: {len(kind['classes'])} classes: {parts}")
    return lines
