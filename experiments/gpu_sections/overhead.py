"""Section `overhead`: what a launch costs the host."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import attention, linear, reduce
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.launch import launches_to
from gpu_sections.clock import Clock
from gpu_sections.common import random
from gpu_sections.device import device


def launch_overhead(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of the host for one call of one row: what decoding without graphs waits for.

    `launch` is what Triton itself takes to launch our linear layer.
    """
    del clock, options
    size = device.size(4096)
    x, weight = random(1, size), random(size, size)
    wide = random(8, 1, size, dtype=torch.float32)
    kv_heads, dim = (8, 128) if device.name == "cuda" else (1, 16)
    query = random(1, 8, 4 * kv_heads, dim).transpose(1, 2)
    key = random(1, 8 * 64, kv_heads, dim).transpose(1, 2)
    bounds = torch.arange(9, dtype=torch.int32, device=device.name)
    layout = Layout(8, bounds, bounds * 64, max_k=64)
    scores = Scores(0.1)
    with torch.inference_mode():
        times = {
            "stock linear": device.host_us(lambda: F.linear(x, weight)),
            "linear": device.host_us(lambda: linear.linear(x, weight)),
            "mean": device.host_us(lambda: reduce.mean_dims(wide, [-1], True)),
            "attention": device.host_us(
                lambda: attention.attention(query, key, key, layout, scores)
            ),
        }
        with contextlib.suppress(Exception):  # its arguments differ between versions of Triton
            times["launch"] = launch_us(lambda: linear.linear(x, weight))
    return {"us": times}


def launch_us(function: Callable[[], Any]) -> float:
    """Host microseconds of a call's last launch, by Triton."""
    seen: list[tuple[Any, Any, Any, Any]] = []
    with launches_to(lambda *launch: seen.append(launch)):
        function()
    kernel, grid, args, named = seen[-1]
    return device.host_us(lambda: kernel[grid](*args, **named))


def show_overhead(result: dict[str, Any]) -> list[str]:
    """One line."""
    parts = ", ".join(f"{name} {us:.1f} µs" for name, us in result["us"].items())
    return [f"host time a call: {parts}"]
