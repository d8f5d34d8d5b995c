"""What the sections share: values, timing, names."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from math import isnan
from typing import Any

import torch

from detcheck.kernels.triton.configs import Tile

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LIMITS = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
"""Largest relative error by dtype: a few roundings; of float32, far below those of TF32."""
Failures = list[str]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """Normal values on the GPU."""
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def short(dtype: torch.dtype) -> str:
    """`bfloat16` of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def median_ms(function: Callable[[], Any], rep: int = 25) -> float:
    """Median milliseconds of a call on the GPU; the L2 cache is overwritten before each."""
    from triton.testing import do_bench

    return float(do_bench(function, warmup=8, rep=rep, return_mode="median"))


def time_or_inf(function: Callable[[], Any]) -> float:
    """`median_ms`, infinity where the card does not take it."""
    try:
        return median_ms(function, 15)
    except torch.AcceleratorError:  # the GPU answers no more
        raise
    except Exception:
        return float("inf")


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
    """0 for none."""
    return statistics.geometric_mean(values) if values else 0.0


def describe(tile: Tile) -> str:
    """`128x256x64 w8 s4 g8`, and `t` where the weights come first."""
    loads = " tma" * tile.descriptors + " persistent" * tile.persistent
    turned = " t" if tile.weights_first else ""
    return (
        f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages} "
        f"g{tile.group_m}{turned}{loads}"
    )
