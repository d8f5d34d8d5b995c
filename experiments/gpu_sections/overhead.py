"""Section `overhead`: what a launch costs the host."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import linear
from detcheck.kernels.triton.launch import launches_to
from gpu_sections.clock import Clock
from gpu_sections.common import random


def launch_overhead(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of the host for one linear layer of one row: what eager decoding waits for.

    `launch` is Triton's part of ours, `compiled` the same without its look at the arguments.
    """
    del clock, options
    x, weight = random(1, 576), random(576, 576)
    with torch.inference_mode():
        times = {
            "stock_us": host_us(lambda: F.linear(x, weight)),
            "ours_us": host_us(lambda: linear.linear(x, weight)),
        }
        with contextlib.suppress(Exception):  # what the launch is made of moves with Triton
            times |= launch_us(lambda: linear.linear(x, weight))
    return times


def launch_us(function: Callable[[], Any]) -> dict[str, float]:
    """Host microseconds of a call's launch by Triton, and of its compiled kernel's."""
    kernel, grid, args, named = launch_of(function)
    compiled = kernel.warmup(*args, grid=grid, **named)
    every = (*args, *(named[name] for name in kernel.arg_names[len(args) :]))
    return {
        "launch_us": host_us(lambda: kernel[grid](*args, **named)),
        "compiled_us": host_us(lambda: compiled[grid](*every)),
    }


def launch_of(function: Callable[[], Any]) -> tuple[Any, Any, Any, Any]:
    """(kernel, grid, arguments, named arguments) of the last launch that a call makes."""
    seen: list[tuple[Any, Any, Any, Any]] = []
    with launches_to(lambda *launch: seen.append(launch)):
        function()
    return seen[-1]


def host_us(function: Callable[[], Any], calls: int = 500) -> float:
    """Host microseconds a call, the device keeping up."""
    for _ in range(20):
        function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    elapsed = time.perf_counter() - started
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


def show_overhead(result: dict[str, Any]) -> list[str]:
    parts = ", ".join(
        f"{name.removesuffix('_us')} {us:.1f} µs"
        for name, us in result.items()
        if name.endswith("_us")
    )
    return [f"host time a linear layer: {parts}"]
