"""Section `classes`: which tiles, cuts of K and shapes of attention give the same bits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from detcheck.kernels.triton import attention, attention_shapes, classes, configs, matmul
from detcheck.kernels.triton.configs import Tile
from gpu_sections.clock import Clock
from gpu_sections.common import DTYPES, describe, error_text, short
from gpu_sections.device import device

DEPTHS = (576, 4096, 14336)
HEADS = ((3, 64), (4, 128), (8, 256)) if device.name == "cuda" else ((3, 16),)
"""(heads of a key-value head, head size)."""


def candidate_tiles(dtype: torch.dtype) -> dict[str, Tile]:
    """The tables' tiles, and others that might leave the class; the name says why."""
    named = {f"table {describe(tile)}": tile for _, tile in table(dtype)}
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


def table(dtype: torch.dtype) -> configs.Table:
    """The tiles of a dtype on this device."""
    return configs.table(dtype, device.capability())


def matmul_classes(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Which tiles, cuts of K and shapes of attention agree on data made to tell them apart."""
    del options
    result: dict[str, Any] = {"kinds": [], "heads": []}
    for dtype in DTYPES:
        for inner in device.few(DEPTHS):
            if clock.spent():
                return result | {"unfinished": True}
            depth = device.size(inner)
            result["kinds"].append({"dtype": short(dtype), "K": depth, **classes_of(dtype, depth)})
    for dtype in device.few(DTYPES[:2]):
        for group, dim in device.few(HEADS):
            if clock.spent():
                return result | {"unfinished": True}
            result["heads"].append(
                {"dtype": short(dtype), "dim": dim, **shapes_of(dtype, group, dim)}
            )
    return result


def classes_of(dtype: torch.dtype, inner: int) -> dict[str, Any]:
    """Classes of tiles, and of ways to cut the sums, for one depth."""
    place = torch.device(device.name, 0 if device.name == "cuda" else None)
    kind = classes.ProductKind(inner, 512, dtype, transposed=True, device=place)
    left, right = classes.cancelling_operands(kind)
    tiles = candidate_tiles(dtype)
    calls: dict[str, tuple[Tile, int, bool]] = {
        name: (tile, 0, False) for name, tile in tiles.items()
    }
    whole = replace(configs.anchor(table(dtype)), block_n=128)
    for segment in (512, 1024):
        calls[f"segments of {segment}, in turn"] = (whole, segment, False)
        calls[f"segments of {segment}, side by side"] = (next(iter(tiles.values())), segment, True)
    return grouped(
        {name: lambda c=call: matmul.product(left, right, None, *c) for name, call in calls.items()}
    )


def shapes_of(dtype: torch.dtype, group: int, dim: int) -> dict[str, Any]:
    """Whether prefill and decoding share bits: the shapes that agree with the anchor."""
    kind = attention.AttentionKind(group, dim, dtype, torch.device(device.name))
    phases = attention_shapes.shapes(
        group, attention_shapes.block_d(dim), dtype, device.capability()
    )
    anchor = phases["prefill"][0]
    agree = {}
    for phase, ways in phases.items():
        for shape in ways:
            try:
                agree[f"{phase} {shape}"] = attention.agree(kind, anchor, shape)
            except Exception as error:  # a shape that this card does not take
                agree[f"{phase} {shape}"] = error_text(error, 120)
    return {"agree": agree}


def grouped(calls: dict[str, Callable[[], torch.Tensor]]) -> dict[str, Any]:
    """Calls by the bits of their results, and those that the card refused."""
    groups: list[tuple[torch.Tensor, list[str]]] = []
    refused = {}
    for name, call in calls.items():
        try:
            out = call()
        except Exception as error:  # a tile that this card does not take
            refused[name] = error_text(error, 120)
            continue
        same = next((names for bits, names in groups if torch.equal(bits, out)), None)
        if same is None:
            groups.append((out, [name]))
        else:
            same.append(name)
    return {"classes": [names for _, names in groups], "refused": refused}


def show_classes(result: dict[str, Any]) -> list[str]:
    """One line a kind."""
    lines = []
    for kind in result["kinds"]:
        parts = " | ".join(", ".join(names) for names in kind["classes"])
        lines.append(f"- {kind['dtype']} K={kind['K']}: {len(kind['classes'])} classes: {parts}")
    for heads in result["heads"]:
        apart = [name for name, agrees in heads["agree"].items() if agrees is not True]
        text = f"apart: {', '.join(apart)}" if apart else "all shapes of attention agree"
        lines.append(f"- {heads['dtype']} heads of {heads['dim']}: {text}")
    return lines
