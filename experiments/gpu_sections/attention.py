"""Section `attention`: prefill and decoding against stock."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import attention
from detcheck.kernels.triton.attention_layout import Layout
from gpu_sections.clock import Clock
from gpu_sections.common import random, time_or_inf
from gpu_sections.device import device

CASES = (
    *(("prefill", 1, keys, keys) for keys in (128, 1024, 4096, 8192)),
    *(("decode", batch, 1, keys) for batch in (1, 16, 64, 256) for keys in (128, 1024, 8192)),
)
"""(phase, batch, queries, keys)."""


def attention_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16, 32 heads over 8, head size 128: prefill against flash, decoding against SDPA."""
    del options
    measured: list[dict[str, Any]] = []
    for phase, batch, queries, keys in [*device.few(CASES[:4]), *device.few(CASES[4:])]:
        if clock.spent():
            return {"rows": measured, "unfinished": True}
        row = {"phase": phase, "batch": batch, "keys": keys}
        measured.append(row | times(batch, device.size(queries), device.size(keys)))
    return {"rows": measured}


def times(batch: int, queries: int, keys: int) -> dict[str, float]:
    """Milliseconds of stock, of ours, and of ours with all splits in turn."""
    kv_heads, dim = (8, 128) if device.name == "cuda" else (1, 16)
    query = random(batch, 4 * kv_heads, queries, dim)
    key, value = (random(batch, kv_heads, keys, dim) for _ in range(2))
    layout = Layout(batch, max_k=keys)

    def ours(parallel: bool | None) -> float:
        return time_or_inf(
            lambda: attention.attention(query, key, value, layout, parallel=parallel)
        )

    stock_ms, ours_ms, in_turn_ms = (
        time_or_inf(lambda: flash(query, key, value)), ours(None), ours(False)
    )  # fmt: skip
    ratio = stock_ms / ours_ms if ours_ms < float("inf") else 0.0
    return {"stock_ms": stock_ms, "ours_ms": ours_ms, "in_turn_ms": in_turn_ms, "ratio": ratio}


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Stock attention by its fastest kernel here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, enable_gqa=True
        )


def show_attention(result: dict[str, Any]) -> list[str]:
    """One line a case."""
    lines = ["| phase | batch | keys | stock ms | ours ms | in turn ms | stock / ours |"]
    lines.append("|---" * 7 + "|")
    lines += [
        f"| {row['phase']} | {row['batch']} | {row['keys']} | {row['stock_ms']:.3f} | "
        f"{row['ours_ms']:.3f} | {row['in_turn_ms']:.3f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    return lines
