"""Section `attention`: prefill and decoding against stock."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import attention
from detcheck.kernels.triton.attention_layout import Layout
from gpu_sections.clock import Clock
from gpu_sections.common import median_ms, random, time_or_inf


def attention_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16, 32 heads over 8, head size 128: prefill against flash, decoding against SDPA."""
    del options
    measured = []
    cases = [("prefill", 1, n, n) for n in (128, 1024, 4096, 8192)]
    cases += [
        ("decode", batch, 1, keys) for batch in (1, 16, 64, 256) for keys in (128, 1024, 8192)
    ]
    for phase, batch, queries, keys in cases:
        if clock.spent():
            return {"rows": measured, "unfinished": True}
        query = random(batch, 32, queries, 128)
        key, value = (random(batch, 8, keys, 128) for _ in range(2))
        layout = Layout(batch, max_k=keys)
        row: dict[str, Any] = {"phase": phase, "batch": batch, "keys": keys}
        row["stock_ms"] = time_or_inf(lambda q=query, k=key, v=value: flash(q, k, v))
        for name, parallel in (("ours", None), ("in_turn", False)):
            row[f"{name}_ms"] = median_ms(
                lambda q=query, k=key, v=value, p=parallel, a=layout: attention.attention(
                    q, k, v, a, parallel=p
                )
            )
        measured.append(row | {"ratio": row["stock_ms"] / row["ours_ms"]})
    return {"rows": measured}


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Stock attention by its fastest kernel here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, enable_gqa=True
        )


def show_attention(result: dict[str, Any]) -> list[str]:
    lines = [
        "| phase | batch | keys | stock ms | ours ms | stock / ours |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['phase']} | {row['batch']} | {row['keys']} | {row['stock_ms']:.3f} | "
        f"{row['ours_ms']:.3f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    return lines
