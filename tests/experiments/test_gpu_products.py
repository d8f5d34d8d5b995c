"""Sections `matmul` and `classes`: cuBLASLt beside our tiles, in time and in bits."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import classes, matmul

from detcheck.kernels.triton.configs import HOPPER, Tile
from detcheck.kernels.triton.cublas import Library

FIRST, WRONG, FASTEST, REFUSED = (Tile(64, 64, 64, warps, 4) for warps in (1, 2, 4, 8))
MS = {FIRST: 3.0, WRONG: 1.0, FASTEST: 2.0, REFUSED: float("inf")}


@pytest.mark.parametrize(
    ("tiles", "expected"),
    [
        ((FIRST, WRONG, FASTEST, REFUSED), FASTEST),
        ((REFUSED, FIRST, WRONG), FIRST),
        ((WRONG,), HOPPER[-1][1]),
    ],
)
def test_cublaslt_is_compared_with_the_fastest_tile_of_the_class(
    monkeypatch: pytest.MonkeyPatch, tiles: tuple[Tile, ...], expected: Tile
) -> None:
    kind = SimpleNamespace(
        tiles=HOPPER, ways=lambda rows: [Library(65, 128), *tiles], agrees=lambda way: way != WRONG
    )
    monkeypatch.setattr(matmul, "class_of", lambda left, weight: kind)
    monkeypatch.setattr(matmul.matmul, "product", lambda left, right, bias, tile: MS[tile])
    monkeypatch.setattr(matmul, "milliseconds", lambda call, device: call())
    assert matmul.tile_of(torch.zeros(80, 8), torch.zeros(8, 8)) == expected


def test_layers_for_which_cublaslt_was_not_asked_do_not_count() -> None:
    """As without a GPU: they are no layers in which its bits were found to be ours."""

    def layer(name: str, **library: bool) -> dict[str, Any]:
        return {"dtype": "bfloat16", "model": "M", "layer": name, "N": 8, "K": 16,
                "library": library}  # fmt: skip

    nowhere = layer("not asked")
    assert classes.show_library([nowhere]) == ["- cuBLASLt was asked for no layer"]
    same, other = layer("q", a=True, b=True), layer("k", a=True, b=False)
    lines = classes.show_library([nowhere, same, other])
    assert lines[0].endswith("in 1 of 2 layers")
    assert lines[1:] == ["  - bfloat16 M k 8x16: other bits at M in b"]
