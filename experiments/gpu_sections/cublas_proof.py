"""Section `cublas`: for which layers pinned cuBLAS gives each row the same bits at every M."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from detcheck.kernels.triton import cublas, matmul
from detcheck.kernels.triton.classes import ProductKind
from gpu_sections.clock import Clock
from gpu_sections.common import HALF, random, time_or_inf
from gpu_sections.device import device
from gpu_sections.layers import linear_shapes

ROWS = (1, 16, 64, 256, 1024, 4096)
LARGEST_WEIGHT = 1 << 28
"""Entries of a weight beyond which a probe would take too much memory."""
SCRIPT = Path(__file__).parents[1] / "gpu.py"


def cublas_proof(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """The proof and the times of each layer, in a process whose cuBLAS has no workspace.

    cuBLAS reads its settings when a handle is created, so this process starts another one.
    """
    if pinned():
        return proofs(clock)
    command = [sys.executable, str(SCRIPT), "--sections", "cublas", "--child"]
    command += ["--minutes", str(max(clock.left(), 1) / 60)]
    done = subprocess.run(
        command, env=os.environ | settings(), capture_output=True, text=True, check=False,
        timeout=clock.left() + 60,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        result = result_in(line)
        if result is not None:
            return result
    raise RuntimeError(f"the process with pinned cuBLAS told nothing: {done.stderr[-300:]}")


def settings() -> dict[str, str]:
    """The environment in which cuBLAS does not split sums."""
    return {name: values[-1] for name, values in cublas.PINNED.items()}


def pinned() -> bool:
    """Whether this process has that environment."""
    return all(os.environ.get(name) in values for name, values in cublas.PINNED.items())


def result_in(line: str) -> dict[str, Any] | None:
    """The section's result, if a line of a child's output holds it."""
    import json

    try:
        event = json.loads(line)
    except ValueError:
        return None
    ends = isinstance(event, dict) and event.get("end") == "cublas"
    return event["result"] if ends else None


def proofs(clock: Clock) -> dict[str, Any]:
    """Each layer's shapes that gave other bits, and the times against ours."""
    found: list[dict[str, Any]] = []
    for model, layer, *shape in device.few(cases()):
        if clock.spent():
            return {"kinds": found, "unfinished": True}
        columns, inner = map(device.size, shape)
        place = torch.device(device.name)
        kind = ProductKind(inner, columns, HALF, transposed=True, device=place)
        apart = [rows for rows, agrees in cublas.proof(kind, cublas.stock) if not agrees]
        row: dict[str, Any] = {"model": model, "layer": layer, "N": columns, "K": inner}
        row |= {"differing_rows": apart, "ms": times(columns, inner)}
        found.append(row)
    return {"kinds": found}


def cases() -> list[tuple[str, str, int, int]]:
    """(model, layers, N, K)."""
    return [shape for shape in linear_shapes() if shape[2] * shape[3] <= LARGEST_WEIGHT]


def times(columns: int, inner: int) -> dict[str, dict[str, float]]:
    """Milliseconds by M: pinned cuBLAS in padded shapes, and ours."""
    weight = random(columns, inner).t()
    found = {}
    for rows in device.few(ROWS):
        left = random(rows, inner)
        found[str(rows)] = {
            "cublas": time_or_inf(lambda x=left: cublas.by_shapes(x, weight, cublas.stock)),
            "ours": time_or_inf(lambda x=left: matmul.mm(x, weight)),
        }
    return found


def show_cublas(result: dict[str, Any]) -> list[str]:
    """One line a layer: whether it is one class, and how its times compare with ours."""
    lines = ["| layer | N | K | one class over all M | ours / cuBLAS by M |", "|---" * 5 + "|"]
    for kind in result["kinds"]:
        apart = kind["differing_rows"]
        one = "yes" if not apart else f"no: {len(apart)} shapes, first M = {apart[0]}"
        ratios = ", ".join(
            f"{rows}: {ms['ours'] / ms['cublas']:.2f}" for rows, ms in kind["ms"].items()
        )
        lines.append(
            f"| {kind['model']} {kind['layer']} | {kind['N']} | {kind['K']} | {one} | {ratios} |"
        )
    return lines
