"""Section `end to end`: an 8B-shaped model through detcheck's continuous engine."""

from __future__ import annotations

import argparse
import traceback
from collections import Counter
from typing import Any

from gpu_sections.clock import Clock
from gpu_sections.common import error_text
from gpu_sections.device import device
from gpu_sections.loading import LARGE, engine_for, new_tokens, random_llama, unproved

SETTINGS = ("stock", "batch-invariant", "batch-invariant:matmul", "batch-invariant:attention")
SEQUENCES = 256


def end_to_end(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """An 8B-shaped Llama with random weights, 256 sequences of about 100 tokens at once.

    The shape of the source's 26 / 55 / 42 s table, on transformers' own scheduler. Its stock side
    attends through SDPA with a dense mask over all requests, which is what that scheduler offers
    without flash-attn; it does not measure the best serving stack. Families alone show the cost
    of each.
    """
    del options
    loaded = random_llama("Llama, 8B, random", LARGE)
    sequences = 4 if device.name == "cpu" else SEQUENCES
    rows: list[dict[str, Any]] = []
    failures = []
    for kernels in SETTINGS:
        if clock.spent():
            break
        try:
            rows.append(timed(loaded, kernels, sequences))
        except Exception as error:  # the other settings are still worth having
            if device.is_lost(error):
                raise
            traceback.print_exc()
            failures.append(f"{kernels}: {error_text(error)}")
    stock = next((row["elapsed_s"] for row in rows if row["kernels"] == "stock"), None)
    for row in rows:
        row["relative_cost"] = row["elapsed_s"] / stock if stock else None
    failures += [
        f"{row['kernels']}: {row['distinct']} distinct answers"
        for row in rows
        if row["kernels"] == "batch-invariant" and row["distinct"] != 1
    ]
    failures += unproved(rows)
    return {
        "rows": rows,
        "failures": failures,
        "sequences": sequences,
        "new_tokens": new_tokens(),
        "unfinished": len(rows) + len(failures) < len(SETTINGS),
    }


def timed(loaded: Any, kernels: str, sequences: int) -> dict[str, Any]:
    """One trial of `sequences` equal requests, after its warm-up; and one request alone."""
    answers = Counter[Any]()
    engine, trials = engine_for(loaded, kernels, (1, sequences), 2 * sequences)
    for trial in trials:
        result = engine.run_trial(trial)
        answers.update(completion.token_ids for _, completion in result.completions)
    proof = engine.proof(kernels)
    engine.close()
    return {
        "kernels": kernels,
        "elapsed_s": result.elapsed_s,
        "tokens_per_second": result.generated_tokens / result.elapsed_s,
        "distinct": len(answers),
        "self_check": proof.self_check,
    }


def show_end_to_end(result: dict[str, Any]) -> list[str]:
    """One line a kernels setting."""
    lines = [
        f"{result['sequences']} sequences of {result['new_tokens']} new tokens, "
        "8B shape, random weights",
        "",
        "| kernels | s | tokens/s | against stock | distinct | self-check |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cost = f"{row['relative_cost']:.2f}" if row["relative_cost"] else "–"
        lines.append(
            f"| {row['kernels']} | {row['elapsed_s']:.1f} | {row['tokens_per_second']:.0f} | "
            f"{cost} | {row['distinct']} | {row['self_check']} |"
        )
    return lines
