"""Section `classes`: which tiles, ranges of cuBLASLt and shapes of attention share bits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.triton import attention, attention_shapes, classes, configs, matmul
from detcheck.kernels.triton.configs import Tile
from detcheck.kernels.triton.cublas import Library
from gpu_sections.clock import Clock
from gpu_sections.common import DTYPES, describe, error_text, short
from gpu_sections.device import device
from gpu_sections.layers import linear_shapes

DEPTHS = (576, 4096, 14336)
HEADS = ((3, 64), (4, 128), (8, 256)) if device.name == "cuda" else ((3, 16),)
"""(heads of a key-value head, head size)."""
FIRST_ROWS = (65, 129, 257, 513, 1025)
"""One M of each range of the table in which cuBLASLt may be asked."""
MOST = 1025
LARGEST_WEIGHT = 1 << 28
"""Entries of a weight."""


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
    """Which of them agree on data made to tell them apart."""
    del options
    result: dict[str, Any] = {"kinds": [], "heads": [], "layers": []}
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
    for dtype in device.few(DTYPES[:2]):
        for model, layer, *shape in device.few(layers()):
            if clock.spent():
                return result | {"unfinished": True}
            columns, inner = map(device.size, shape)
            row = {"dtype": short(dtype), "model": model, "layer": layer, "N": columns, "K": inner}
            result["layers"].append(row | {"library": library_of(dtype, columns, inner)})
    return result


def layers() -> list[tuple[str, str, int, int]]:
    """(model, layers, N, K) of those whose probe does not take too much memory."""
    return [shape for shape in linear_shapes() if shape[2] * shape[3] <= LARGEST_WEIGHT]


def library_of(dtype: torch.dtype, columns: int, inner: int) -> dict[str, bool]:
    """The ranges of M in which cuBLASLt was compared with the anchor: whether all of it agrees."""
    weight, left = empty(columns, inner, dtype), empty(MOST, inner, dtype)
    found = {}
    for rows in FIRST_ROWS:
        kind = classes.classes(left[None, :rows], weight.t()[None], matmul.product)
        ranges = [way for way in kind.ways(rows) if isinstance(way, Library)]
        usable = kind.usable(rows)
        found |= {f"{way.first}-{way.last}": way in usable for way in ranges}
    return found


def empty(rows: int, inner: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose values nobody reads."""
    return torch.empty(rows, inner, dtype=dtype, device=device.name)


def classes_of(dtype: torch.dtype, inner: int) -> dict[str, Any]:
    """Classes of tiles for one depth."""
    place = torch.device(device.name, 0 if device.name == "cuda" else None)
    kind = classes.ProductKind(inner, 512, dtype, transposed=True, device=place)
    left, right = classes.cancelling_operands(kind)
    return grouped(
        {
            name: lambda t=tile: matmul.product(left, right, None, t)
            for name, tile in candidate_tiles(dtype).items()
        }
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
    """One line a kind of product; it names the tiles that differ from the largest class."""
    lines = []
    for kind in result["kinds"]:
        one, *others = sorted(kind["classes"], key=len, reverse=True) or [[]]
        apart = "; apart: " + " | ".join(map(", ".join, others)) if others else ""
        lines.append(f"- {kind['dtype']} K={kind['K']}: {len(one)} tiles are one class{apart}")
    for heads in result["heads"]:
        apart = [name for name, agrees in heads["agree"].items() if agrees is not True]
        text = f"apart: {', '.join(apart)}" if apart else "all shapes of attention agree"
        lines.append(f"- {heads['dtype']} heads of {heads['dim']}: {text}")
    return lines + show_library(result["layers"])


def show_library(layers: list[dict[str, Any]]) -> list[str]:
    """The number of layers in which cuBLASLt gives our bits, and the others with their rows."""
    asked = [row for row in layers if row["library"]]
    if not asked:
        return ["- cuBLASLt was asked for no layer"]
    held = [row for row in asked if all(row["library"].values())]
    lines = [
        f"- cuBLASLt without split-K gives our bits at every M that it is asked for in {len(held)} "
        f"of {len(asked)} layers"
    ]
    for row in asked:
        apart = [span for span, agrees in row["library"].items() if not agrees]
        if apart:
            where = f"{row['model']} {row['layer']} {row['N']}x{row['K']}"
            lines.append(f"  - {row['dtype']} {where}: other bits at M in {', '.join(apart)}")
    return lines
