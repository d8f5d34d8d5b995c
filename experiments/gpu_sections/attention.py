"""Section `attention`: prefill and decoding against stock."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from detcheck.kernels.triton import attention
from detcheck.kernels.triton.attention_layout import Layout
from gpu_sections.clock import Clock
from gpu_sections.common import geometric_mean, random, time_or_inf
from gpu_sections.device import device

CASES = (
    *(("prefill", 1, keys, keys) for keys in (128, 1024, 4096, 8192)),
    *(("decode", batch, 1, keys) for batch in (1, 16, 64, 256) for keys in (128, 1024, 8192)),
)
"""(phase, batch, queries, keys)."""
STOCK = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def attention_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16, 32 heads over 8, head size 128: against PyTorch's flash and cuDNN kernels."""
    del options
    measured: list[dict[str, Any]] = []
    for phase, batch, queries, keys in [*device.few(CASES[:4]), *device.few(CASES[4:])]:
        if clock.spent():
            return {"rows": measured, "unfinished": True}
        row = {"phase": phase, "batch": batch, "keys": keys}
        measured.append(row | times(batch, device.size(queries), device.size(keys)))
    return {"rows": measured}


def times(batch: int, queries: int, keys: int) -> dict[str, float]:
    """Milliseconds of stock kernels, of ours, and of ours with all splits in turn.

    The ratio is that of the faster stock kernel's time to ours.
    """
    kv_heads, dim = (8, 128) if device.name == "cuda" else (1, 16)
    query = random(batch, 4 * kv_heads, queries, dim)
    key, value = (random(batch, kv_heads, keys, dim) for _ in range(2))
    layout = Layout(batch, max_k=keys)

    def ours(parallel: bool | None) -> float:
        return time_or_inf(
            lambda: attention.attention(query, key, value, layout, parallel=parallel)
        )

    row = {
        f"{name}_ms": time_or_inf(lambda kernel=kernel: stock(kernel, query, key, value))
        for name, kernel in STOCK.items()
    }
    row |= {"ours_ms": ours(None), "in_turn_ms": ours(False)}
    fastest = min(row[f"{name}_ms"] for name in STOCK)
    measured = fastest < float("inf") and row["ours_ms"] < float("inf")
    return row | {"ratio": fastest / row["ours_ms"] if measured else 0.0}


def stock(
    kernel: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """PyTorch's attention by one of its kernels."""
    kernels = [kernel] if device.name == "cuda" else [SDPBackend.MATH]
    with sdpa_kernel(kernels):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, enable_gqa=True
        )


def show_attention(result: dict[str, Any]) -> list[str]:
    """One line a case."""
    lines = [
        "ms on the device; the ratio is the faster stock kernel's time to ours (1: as fast)",
        "",
        "| phase | batch | keys | flash | cuDNN | ours | in turn | ratio |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {row['phase']} | {row['batch']} | {row['keys']} | {row['flash_ms']:.4f} | "
        f"{row['cudnn_ms']:.4f} | {row['ours_ms']:.4f} | {row['in_turn_ms']:.4f} | "
        f"{row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    ratios = {
        phase: [row["ratio"] for row in result["rows"] if row["phase"] == phase and row["ratio"]]
        for phase in ("prefill", "decode")
    }
    means = ", ".join(f"{phase} {geometric_mean(found):.2f}" for phase, found in ratios.items())
    return [*lines, "", f"geometric mean: {means}"]
