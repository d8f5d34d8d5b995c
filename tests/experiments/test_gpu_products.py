"""Section `matmul`: what our tiles alone take, beside cuBLASLt."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import matmul

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
