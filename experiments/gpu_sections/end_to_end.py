"""Section `end to end`: an 8B-shaped model through detcheck's continuous engine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from gpu_sections.clock import Clock
from gpu_sections.common import noted
from gpu_sections.device import device
from gpu_sections.loading import (
    engine_for_most,
    entry_s,
    large_llama,
    new_tokens,
    shortened,
    unproved,
)

SETTINGS = ("stock", "batch-invariant", "fully-invariant")
SEQUENCES = 256
ALONE_TOKENS = 25


def end_to_end(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """An 8B-shaped Llama with random weights, 256 sequences of about 100 tokens at once.

    The shape of the source's 26 / 55 / 42 s table, on transformers' own scheduler. Its stock side
    attends through SDPA with a dense mask over all requests, which is what that scheduler offers
    without flash-attn; it does not measure the best serving stack. Each setting runs twice: the
    first time stock attention (cuDNN) plans each new length, and ours chooses tiles.
    """
    del options
    sequences = 4 if device.name == "cpu" else SEQUENCES
    rows: list[dict[str, Any]] = []
    result = {"rows": rows, "failures": [], "sequences": sequences, "new_tokens": new_tokens()}
    if clock.spent():
        return result | {"unfinished": True}
    engine, trials, failures = engine_for_most(
        large_llama(), SETTINGS, (1, sequences), 2 * sequences
    )
    tried = 0
    try:
        for kernels in engine.experiment.kernels:
            if clock.spent():
                break
            tried += 1
            with noted(failures, kernels):
                rows.append(timed(engine, [t for t in trials if t.condition.kernels == kernels]))
    finally:
        engine.close()
    stock = next((row["elapsed_s"] for row in rows if row["kernels"] == "stock"), None)
    for row in rows:
        row["relative_cost"] = row["elapsed_s"] / stock if stock else None
    failures += [
        f"{row['kernels']}: {row['distinct']} distinct answers"
        for row in rows
        if row["kernels"] != "stock" and row["distinct"] != 1
    ]
    failures += unproved(rows)
    unfinished = tried < len(engine.experiment.kernels)
    return result | {"failures": failures, "unfinished": unfinished}


def timed(engine: Any, trials: list[Any]) -> dict[str, Any]:
    """One trial of many equal requests, twice; and the first tokens of one alone.

    The time is that of the second trial. Entering the mode is timed apart.
    """
    alone, together = trials
    kernels = together.condition.kernels
    single = engine.run_trial(shortened(alone, min(ALONE_TOKENS, new_tokens())))
    first, result = (engine.run_trial(replace(together, index=again)) for again in range(2))
    answers = {each.token_ids for trial in (first, result) for _, each in trial.completions}
    beginning = single.completions[0][1].token_ids
    is_new = all(answer[: len(beginning)] != beginning for answer in answers)
    return {
        "kernels": kernels,
        "elapsed_s": result.elapsed_s,
        "first_s": first.elapsed_s,
        "tokens_per_second": result.generated_tokens / result.elapsed_s,
        "distinct": len(answers) + is_new,
        "entry_s": entry_s(kernels),
        "self_check": engine.proof(kernels).self_check or "passed",
    }


def show_end_to_end(result: dict[str, Any]) -> list[str]:
    """One line a kernels setting."""
    lines = [
        f"{result['sequences']} sequences of {result['new_tokens']} new tokens, "
        "8B shape, random weights",
        "",
        "| kernels | first s | s | tokens/s | against stock | distinct | entry ms | self-check |",
        "|---" * 8 + "|",
    ]
    for row in result["rows"]:
        cost = f"{row['relative_cost']:.2f}" if row["relative_cost"] else "–"
        lines.append(
            f"| {row['kernels']} | {row['first_s']:.2f} | {row['elapsed_s']:.2f} | "
            f"{row['tokens_per_second']:.0f} | {cost} | {row['distinct']} | "
            f"{1000 * row['entry_s']:.0f} | {row['self_check']} |"
        )
    return lines
