"""Section `source`: the experiments that the source of the idea reports."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from detcheck.kernels.triton import matmul
from gpu_sections.clock import Clock
from gpu_sections.device import device

REPEATS = 1000


def source(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """`mm(a[:1], b)` against `mm(a, b)[:1]`, and one product 1000 times over."""
    del options
    size = device.size(2048)
    a = torch.linspace(-1000, 1000, size * size, device=device.name).view(size, size).bfloat16()
    b = a.clone()
    result = {
        name: (product(a[:1], b) - product(a, b)[:1]).abs().max().item()
        for name, product in (("stock", torch.mm), ("invariant", matmul.mm))
    }
    first = torch.mm(a, b)
    repeats = differing = 0
    while repeats < REPEATS and not clock.spent():
        repeats += 1
        differing += not torch.equal(torch.mm(a, b), first)
    failures = [f"invariant mm differs by {result['invariant']}"] * (result["invariant"] != 0)
    return {
        "max_difference": result,
        "repeats": repeats,
        "repeats_that_differ": differing,
        "failures": failures,
    }


def show_source(result: dict[str, Any]) -> list[str]:
    """The figures beside the source's."""
    found = result["max_difference"]
    return [
        f"mm(a[:1], b) against mm(a, b)[:1]: stock {found['stock']} (the source: 1669.25), "
        f"invariant {found['invariant']}; the same stock product {result['repeats']} times: "
        f"{result['repeats_that_differ']} differ"
    ]
