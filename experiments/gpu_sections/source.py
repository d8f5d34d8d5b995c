"""Section `source`: the experiments that the source of the idea reports."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from detcheck.kernels.triton import matmul
from gpu_sections.clock import Clock


def source(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """`mm(a[:1], b)` against `mm(a, b)[:1]`, and one product 1000 times over."""
    del clock, options
    a = torch.linspace(-1000, 1000, 2048 * 2048, device="cuda").view(2048, 2048).bfloat16()
    b = torch.linspace(-1000, 1000, 2048 * 2048, device="cuda").view(2048, 2048).bfloat16()
    result = {
        name: (product(a[:1], b) - product(a, b)[:1]).abs().max().item()
        for name, product in (("stock", torch.mm), ("invariant", matmul.mm))
    }
    first = torch.mm(a, b)
    differing = sum(not torch.equal(torch.mm(a, b), first) for _ in range(1000))
    failures = [f"invariant mm differs by {result['invariant']}"] * (result["invariant"] != 0)
    return {"max_difference": result, "repeats_that_differ": differing, "failures": failures}


def show_source(result: dict[str, Any]) -> list[str]:
    found = result["max_difference"]
    return [
        f"mm(a[:1], b) against mm(a, b)[:1]: stock {found['stock']} (the source: 1669.25), "
        f"invariant {found['invariant']}; the same stock product 1000 times: "
        f"{result['repeats_that_differ']} differ"
    ]
