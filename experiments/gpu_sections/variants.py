"""Section `variants`: how many answers one prompt has over many loads, and their cost."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_sections.answers import Answers, show_groups, show_loads
from gpu_sections.clock import Clock
from gpu_sections.common import noted
from gpu_sections.device import device
from gpu_sections.graphs import answers_of
from gpu_sections.kept_run import KeptRun
from gpu_sections.loading import (
    PROMPT,
    SMALL,
    engine_for,
    engine_for_most,
    entry_s,
    random_llama,
    shortened,
    unproved,
)

SIZES = (1, 511, 256, 128, 64, 32, 8)
"""Requests in flight, in the order in which they are measured: 1000 completions in all."""
GRAPH_SIZES = (1, 64)
WARM_UP_TOKENS = 8 if device.name == "cuda" else 2
SETTINGS = ("stock", "batch-invariant", "fully-invariant")
WITH_GRAPHS = "batch-invariant, CUDA graphs"
FOLDER = "variants"
"""Within the folder of the results; each run gets a folder of its own there."""


def variants(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """The 80-variants question to a model: 1000 completions over many loads, for each setting.

    Without a real model, one of random weights answers. Its logits are flat, so answers diverge
    easily. The completions are kept in a run directory. Last, batch-invariant kernels answer again
    with their decoding steps as CUDA graphs, which must change no answer.
    """
    loaded = model_for(options.model)
    failures: list[str] = []
    out: Path | None = getattr(options, "out", None)
    try:
        found, run = by_engine(loaded, clock, failures, out)
    except ImportError:  # detcheck's own dependencies are not installed
        found, run = by_transformers(loaded, clock), None
    groups = [each.group() for each in found.values() if each.counts]
    failures += [
        f"{group['kernels']}: {group['distinct']} distinct answers"
        for group in groups
        if group["kernels"] != "stock" and group["distinct"] > 1
    ]
    failures += changed_by_graphs(found)
    failures += unproved(groups)
    result = {"model": loaded.name, "groups": groups, "failures": failures, "run": run}
    return result | {"fused_forms": fused_forms(), "unfinished": clock.spent()}


def fused_forms() -> dict[str, list[str]]:
    """By fused form, `served` or why the own code serves, once for all kinds of operands tried."""
    from detcheck.kernels.fused.gpu_layer import tried_kinds

    return {
        form: list(dict.fromkeys(why or "served" for why in kinds.values()))
        for form, kinds in tried_kinds().items()
    }


def model_for(name: str | None) -> Any:
    """The model of a folder, or the embedded one, or one of random weights."""
    from detcheck.errors import ModelError

    if device.name == "cpu" and name is None:
        return random_llama("dry run, random weights", SMALL)
    try:
        from detcheck import models

        return models.load(name, device=device.name)
    except (ImportError, ModelError) as error:
        if name is not None:
            raise
        print(error, file=sys.stderr)
        return random_llama("no real model here: SmolLM2-135M's shape, random weights", SMALL)


def by_engine(
    loaded: Any, clock: Clock, failures: list[str], out: Path | None
) -> tuple[dict[str, Answers], str | None]:
    """Answers by setting, and the run directory, by detcheck's continuous engine.

    Loads are measured in turn, each for all settings, so that whatever there is when the time is
    spent can be compared. Before the first load a short trial, which is not kept, chooses tiles.
    """
    sizes = (1, 4) if device.name == "cpu" else SIZES
    engine, trials, refused = engine_for_most(loaded, SETTINGS, sizes, sum(sizes))
    failures += refused
    found = {name: Answers(name) for name in engine.experiment.kernels}
    kept = KeptRun(None if out is None else out / FOLDER, engine)
    try:
        for trial in sorted(trials, key=lambda trial: sizes.index(trial.condition.batch_size)):
            answers = found[trial.condition.kernels]
            if clock.spent() or answers.failed:
                continue
            with survived(answers, failures):
                answers.entry_s = answers.entry_s or entry_s(answers.kernels)
                if not answers.counts:
                    engine.run_trial(shortened(trial, WARM_UP_TOKENS))
                result = engine.run_trial(trial)
                kept.append(trial, result)
                answers.add(trial.condition.batch_size, result)
        for answers in found.values():
            answers.self_check = engine.proof(answers.kernels).self_check or "passed"
    finally:
        kept.finish()
        engine.close()
    found[WITH_GRAPHS] = with_graphs(loaded, clock, failures)
    return found, None if kept.path is None else str(kept.path)


def with_graphs(loaded: Any, clock: Clock, failures: list[str]) -> Answers:
    """Batch-invariant kernels again, their decoding steps captured and replayed.

    Each load is asked twice: the first time captures.
    """
    answers = Answers(WITH_GRAPHS)
    if clock.spent():
        return answers
    sizes = tuple(device.few(GRAPH_SIZES)) if device.name == "cuda" else (1, 4)
    with survived(answers, failures):
        engine, trials = engine_for(loaded, "batch-invariant", sizes, 2 * sum(sizes), graphs=True)
        try:
            for trial in trials:
                for again in range(2):
                    if not clock.spent():
                        result = engine.run_trial(replace(trial, index=again))
                        answers.add(trial.condition.batch_size, result)
            answers.self_check = engine.proof("batch-invariant").self_check or "passed"
        finally:
            engine.close()
    return answers


@contextmanager
def survived(answers: Answers, failures: list[str]) -> Iterator[None]:
    """Within this context an error ends one setting; the others are still worth having."""
    answers.failed = True
    with noted(failures, answers.kernels):
        yield
        answers.failed = False


def changed_by_graphs(found: dict[str, Answers]) -> list[str]:
    """A failure if graphs gave another answer than the same kernels without them."""
    graphs, without = found.get(WITH_GRAPHS), found.get("batch-invariant")
    if graphs is None or without is None or not without.counts:
        return []
    others = {*graphs.counts} - {*without.counts}
    return [f"{WITH_GRAPHS}: {len(others)} answers that no run without graphs gave"] * bool(others)


def by_transformers(loaded: Any, clock: Clock) -> dict[str, Answers]:
    """As `by_engine`, by transformers' own loop under the mode, and without a run directory."""
    from detcheck.kernels.in_force import kernels_in_force

    tokens = loaded.tokenizer(PROMPT)["input_ids"]
    found = {}
    for kernels in SETTINGS:
        answers = found[kernels] = Answers(kernels)
        with kernels_in_force(kernels, must_pass=False) as mode:
            for size in (1, 4) if device.name == "cpu" else SIZES:
                if clock.spent():
                    break
                started = time.perf_counter()
                given = answers_of(loaded, [tokens] * size, False)
                answers.note(size, Counter(given), time.perf_counter() - started)
            answers.self_check = "passed" if mode is None else mode.proof().self_check
    return found


def show_variants(result: dict[str, Any]) -> list[str]:
    """One table of settings, one of loads."""
    lines = [result["model"], "", *show_groups(result["groups"])]
    lines += ["", *show_loads(result["groups"]), ""]
    forms = (f"{form}: {', '.join(found) or 'not tried'}"
             for form, found in result["fused_forms"].items())  # fmt: skip
    lines.append("fused forms: " + "; ".join(forms))
    if result["run"]:
        lines += ["", f"completions: `detcheck report {result['run']}`"]
    return lines
