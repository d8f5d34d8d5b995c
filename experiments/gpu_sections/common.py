"""What the sections share: values, timing, errors, names."""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from typing import Any

import torch

from detcheck.kernels.triton.configs import Tile
from gpu_sections.device import device

DTYPES = device.dtypes()
HALF = DTYPES[0]
"""The dtype that speed is measured in: bfloat16 on a GPU."""
LIMITS = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
"""Largest relative error by dtype: a few roundings; of float32, far below those of TF32."""
Failures = list[str]


def random(*shape: int, dtype: torch.dtype = HALF, scale: float = 1.0) -> torch.Tensor:
    """Seeded values on the device, normal on a GPU."""
    return device.random(shape, scale).to(dtype)


def short(dtype: torch.dtype) -> str:
    """`bfloat16` of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def time_or_inf(function: Callable[[], Any] | Sequence[Callable[[], Any]]) -> float:
    """`device.median_ms`; infinity if the card does not take the call."""
    try:
        return device.median_ms(function, 15)
    except Exception as error:
        if device.is_lost(error):
            raise
        return float("inf")


@contextmanager
def noted(failures: Failures, name: str) -> Iterator[None]:
    """Within this context an error becomes a failure, unless the GPU is lost."""
    try:
        yield
    except Exception as error:
        if device.is_lost(error):
            raise
        traceback.print_exc()
        failures.append(f"{name}: {error_text(error)}")


def note_error(
    errors: dict[str, float], name: str, got: torch.Tensor, expected: torch.Tensor
) -> None:
    """Keep the largest relative error (Frobenius) of a kernel."""
    error = ((got.double() - expected).norm() / expected.norm()).item()
    errors[name] = max(errors.get(name, 0.0), float("inf") if isnan(error) else error)


def wrong(errors: dict[str, float]) -> Failures:
    """Kernels whose error is beyond the limit of their dtype, the last word of their name."""
    return [
        f"{name}: relative error {error:.1e}"
        for name, error in errors.items()
        if not error <= LIMITS[name.split()[-1]]
    ]


def geometric_mean(values: list[float]) -> float:
    """Of the values that were measured, which are positive and finite; 0 for none."""
    measured = [value for value in values if 0 < value < float("inf")]
    return statistics.geometric_mean(measured) if measured else 0.0


def describe(tile: Tile) -> str:
    """`128x256x64 w8 s4 g8`, and `t` if the weights come first."""
    loads = " tma" * tile.descriptors + " persistent" * tile.persistent
    turned = " t" if tile.weights_first else ""
    return (
        f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages} "
        f"g{tile.group_m}{turned}{loads}"
    )


def error_text(error: Exception, most: int = 300) -> str:
    """The type and the words of an error, cut to a length."""
    return f"{type(error).__name__}: {error}"[:most]
