"""Section `variants`: how many answers one prompt has over many loads."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from contextlib import nullcontext
from typing import Any

from detcheck import batch_invariant
from gpu_sections.clock import Clock
from gpu_sections.common import error_text
from gpu_sections.device import device
from gpu_sections.graphs import answers_of
from gpu_sections.loading import PROMPT, SMALL, engine_for, random_llama, unproved

SIZES = (1, 511, 256, 128, 64, 32, 8)
"""Requests in flight, in the order in which they are measured: 1000 completions in all."""


def variants(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """The 80-variants question to a model: 1000 completions over many loads.

    Without a real model, one of random weights answers. Its logits are flat, so answers diverge
    easily.
    """
    loaded = model_for(options.model)
    groups = []
    failures = []
    for kernels, share in (("stock", 0.5), ("batch-invariant", 1.0)):
        try:
            groups.append(variants_of(loaded, kernels, Clock(share * clock.left())))
        except Exception as error:  # the other setting is still worth having
            if device.is_lost(error):
                raise
            traceback.print_exc()
            failures.append(f"{kernels}: {error_text(error)}")
    failures += [
        f"{group['kernels']}: {group['distinct']} distinct answers"
        for group in groups
        if group["kernels"] != "stock" and group["distinct"] > 1
    ]
    failures += unproved(groups)
    return {"model": loaded.name, "groups": groups, "failures": failures}


def model_for(name: str | None) -> Any:
    """The model of a folder, or the embedded one, or one of random weights."""
    from detcheck.errors import ModelError

    if device.name == "cpu":
        return random_llama("dry run, random weights", SMALL)
    try:
        from detcheck import models

        return models.load(name, device="cuda")
    except (ImportError, ModelError) as error:
        print(error, file=sys.stderr)
        return random_llama("no real model here: SmolLM2-135M's shape, random weights", SMALL)


def variants_of(loaded: Any, kernels: str, clock: Clock) -> dict[str, Any]:
    """Distinct answers, their counts and first divergence, of up to 1000 completions."""
    sizes = (1, 4) if device.name == "cpu" else SIZES
    try:
        engine, trials = engine_for(loaded, kernels, sizes, len(sizes) * max(sizes))
    except ImportError:  # detcheck's own dependencies are not installed
        return variants_by_transformers(loaded, kernels, sizes, clock)
    answers = Counter[tuple[int, ...]]()
    elapsed = 0.0
    loads = []
    for trial in sorted(trials, key=lambda trial: sizes.index(trial.condition.batch_size)):
        if clock.spent():
            break
        result = engine.run_trial(trial)
        elapsed += result.elapsed_s
        loads.append(trial.condition.batch_size)
        answers.update(completion.token_ids for _, completion in result.completions)
    proof = engine.proof(kernels)
    engine.close()
    return group_of(kernels, loads, answers, elapsed, proof.self_check if loads else "passed")


def variants_by_transformers(
    loaded: Any, kernels: str, sizes: tuple[int, ...], clock: Clock
) -> dict[str, Any]:
    """As `variants_of`, by transformers' own loop under the mode."""
    tokens = loaded.tokenizer(PROMPT)["input_ids"]
    answers = Counter[tuple[int, ...]]()
    loads: list[int] = []
    started = time.perf_counter()
    with batch_invariant() if kernels != "stock" else nullcontext() as mode:
        for size in sizes:
            if clock.spent():
                break
            loads.append(size)
            answers.update(answers_of(loaded, [tokens] * size, False))
        self_check = "passed" if mode is None else mode.proof().self_check
    return group_of(kernels, loads, answers, time.perf_counter() - started, self_check)


def group_of(
    kernels: str,
    loads: list[int],
    answers: Counter[tuple[int, ...]],
    elapsed: float,
    self_check: str,
) -> dict[str, Any]:
    """The answers under one setting of the kernels, as plain data."""
    counts = [count for _, count in answers.most_common()]
    return {
        "kernels": kernels,
        "completions": sum(counts),
        "loads": loads,
        "distinct": len(counts),
        "counts": counts,
        "first_divergence": first_divergence(list(answers)),
        "elapsed_s": elapsed,
        "self_check": self_check,
    }


def first_divergence(answers: list[tuple[int, ...]]) -> int | None:
    """The first token at which any two answers differ; None if all are equal."""
    if len(answers) < 2:
        return None
    for position, tokens in enumerate(zip(*answers, strict=False)):
        if len(set(tokens)) > 1:
            return position
    return min(map(len, answers))


def show_variants(result: dict[str, Any]) -> list[str]:
    """One line a kernels setting."""
    return [result["model"], ""] + [
        f"- {group['kernels']}: {group['distinct']} distinct of {group['completions']}, "
        f"the most common {max(group['counts'], default=0)} times, first divergence "
        f"{group['first_divergence']}, {group['elapsed_s']:.1f} s, self-check {group['self_check']}"
        for group in result["groups"]
    ]
