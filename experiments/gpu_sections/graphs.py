"""Section `graphs`: continuous batching with its decoding captured in CUDA graphs, and without."""

from __future__ import annotations

import argparse
import contextlib
import time
import traceback
from dataclasses import fields
from typing import Any

from gpu_sections.clock import Clock
from gpu_sections.common import error_text
from gpu_sections.device import device
from gpu_sections.loading import LARGE, PROMPT, new_tokens, random_llama

LOADS = (1, 16, 64)
KERNELS = ("stock", "batch-invariant")
PAGE_TOKENS = 32
SPARE_PAGES = 8
BATCH_TOKENS = 4096
SETTINGS = (
    ("stock", False),
    ("batch-invariant", False),
    ("stock", True),
    ("batch-invariant", True),
)
"""(kernels, whether graphs are captured)."""


def decode_graphs(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of an 8B-shaped model at several loads, by transformers' own loop.

    Under invariant kernels a graph must not change a token: the answers with graphs are compared
    with those without.
    """
    del options
    loaded = random_llama("Llama, 8B, random", LARGE)
    rows: list[dict[str, Any]] = []
    failures = []
    for kernels, graphs in SETTINGS:
        for load in device.few(LOADS):
            if clock.spent():
                return {"rows": rows, "failures": failures, "unfinished": True}
            try:
                rows.append(generated(loaded, kernels, graphs, load))
            except Exception as error:  # the other settings are still worth having
                if device.is_lost(error):
                    raise
                traceback.print_exc()
                failures.append(f"{kernels}, graphs {graphs}, load {load}: {error_text(error)}")
    answers = {row["answer"] for row in rows if row["kernels"] == "batch-invariant"}
    failures += [f"batch-invariant: {len(answers)} answers over loads and graphs"] * (
        len(answers) > 1
    )
    return {"rows": rows, "failures": failures}


def generated(loaded: Any, kernels: str, graphs: bool, load: int) -> dict[str, Any]:
    """One row: `load` equal requests, the second time they are asked."""
    from detcheck import batch_invariant

    tokens = loaded.tokenizer(PROMPT)["input_ids"]
    mode = batch_invariant() if kernels != "stock" else contextlib.nullcontext()
    with mode:
        for _ in range(2):  # the first captures graphs and chooses tiles
            started = time.perf_counter()
            answers = answers_of(loaded, [tokens] * load, graphs)
            device.synchronize()
            elapsed = time.perf_counter() - started
    return {
        "kernels": kernels,
        "graphs": graphs,
        "load": load,
        "tokens_per_second": sum(map(len, answers)) / elapsed,
        "distinct": len(set(answers)),
        "answer": hash(answers[0]),
    }


def answers_of(loaded: Any, prompts: list[list[int]], graphs: bool) -> list[tuple[int, ...]]:
    """The new tokens of each prompt, by transformers' `generate_batch`."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    known = {field.name for field in fields(ContinuousBatchingConfig)}
    page = "page_size" if "page_size" in known else "block_size"  # newer than 5.17, or not
    pages = -(-(max(map(len, prompts)) + new_tokens()) // PAGE_TOKENS)
    wanted = {
        "use_cuda_graph": graphs, "use_async_batching": False, "allow_block_sharing": False,
        "auto_switch_to_flash": False, page: PAGE_TOKENS,
        "num_blocks": len(prompts) * pages + SPARE_PAGES, "max_batch_tokens": BATCH_TOKENS,
        "max_requests_per_batch": len(prompts),
    }  # fmt: skip
    batching = ContinuousBatchingConfig(**{k: v for k, v in wanted.items() if k in known})
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens(), eos_token_id=-1, pad_token_id=0
    )
    outputs = loaded.model.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=batching,
        progress_bar=False,
    )  # fmt: skip
    return [tuple(output.generated_tokens) for output in outputs.values()]


def show_graphs(result: dict[str, Any]) -> list[str]:
    """One line a setting and load."""
    lines = ["| kernels | CUDA graphs | load | tokens/s | distinct |", "|---" * 5 + "|"]
    lines += [
        f"| {row['kernels']} | {'yes' if row['graphs'] else 'no'} | {row['load']} | "
        f"{row['tokens_per_second']:.0f} | {row['distinct']} |"
        for row in result["rows"]
    ]
    return lines
