"""Section `step`: where the time of one decoding step of an 8B-shaped model goes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from gpu_sections.clock import Clock
from gpu_sections.common import noted
from gpu_sections.device import device
from gpu_sections.kernel_times import a_step, by_kind, kernel_times
from gpu_sections.loading import engine_for, large_llama, shortened

LOADS = (1, 16, 64)
KERNELS = ("stock", "batch-invariant")
FEW, MORE = 4, 14
"""New tokens of the trials whose difference is the time of steps alone, without the prompt."""
PROFILED_FEW, PROFILED_MORE = 2, 4
SHOWN = 4
KEPT = 12
"""Kernels of a step in the table, and in the JSON."""


def decoding_step(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Wall time, the device's part of it and its launches, of a step of continuous batching.

    No CUDA graphs: if the wall time is far above the device's, the host is what a step waits for.
    """
    del options
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    if clock.spent():
        return {"rows": rows, "failures": failures, "unfinished": True}
    loaded = large_llama()
    loads = tuple(device.few(LOADS))
    tokens = MORE if device.name == "cuda" else PROFILED_MORE
    engine, trials = engine_for(loaded, KERNELS, loads, 2 * sum(loads), tokens=tokens)
    unfinished = False
    try:
        for trial in trials:
            if clock.spent():
                unfinished = True
                break
            with noted(failures, trial.condition.condition_id):
                rows.append(step_of(engine, trial))
    finally:
        engine.close()
    return {"rows": rows, "failures": failures, "unfinished": unfinished}


def step_of(engine: Any, trial: Any) -> dict[str, Any]:
    """One row: the wall time without the profiler, and the kernels with it."""
    few, more = (FEW, MORE) if device.name == "cuda" else (PROFILED_FEW, PROFILED_MORE)
    engine.run_trial(trial)  # tiles are chosen, kernels compiled
    wall = min(step_ms(engine, trial, few, more) for _ in range(2))
    profiles = [
        kernel_times(lambda n=tokens: engine.run_trial(shortened(trial, n)))
        for tokens in (PROFILED_FEW, PROFILED_MORE)
    ]
    kernels = a_step(*profiles, PROFILED_MORE - PROFILED_FEW)
    layers = engine.loaded.model.config.num_hidden_layers
    return {
        "kernels": trial.condition.kernels,
        "load": trial.condition.batch_size,
        "wall_ms": wall,
        "device_ms": sum(kernel.ms for kernel in kernels),
        "launches_a_layer": sum(kernel.launches for kernel in kernels) / layers,
        "ms_by_kind": by_kind(kernels),
        "longest": [asdict(kernel) for kernel in kernels[:KEPT]],
    }


def step_ms(engine: Any, trial: Any, few: int, more: int) -> float:
    """Milliseconds that each token beyond `few` adds."""
    short, long = (engine.run_trial(shortened(trial, tokens)).elapsed_s for tokens in (few, more))
    return float(long - short) * 1000 / (more - few)


def show_step(result: dict[str, Any]) -> list[str]:
    """One line a setting and load; then the kernels that take longest, for a request alone."""
    rows = result["rows"]
    lines = [
        "8B shape, random weights, one decoding step without CUDA graphs",
        "",
        "| kernels | load | wall ms | device ms | products | attention | copies | other "
        "| launches a layer |",
        "|---" * 9 + "|",
    ]
    for row in sorted(rows, key=lambda row: (row["load"], row["kernels"] != "stock")):
        kinds = " | ".join(f"{ms:.2f}" for ms in ordered(row["ms_by_kind"]))
        lines.append(
            f"| {row['kernels']} | {row['load']} | {row['wall_ms']:.1f} | {row['device_ms']:.2f} | "
            f"{kinds} | {row['launches_a_layer']:.1f} |"
        )
    lines.append("")
    for row in rows:
        if row["load"] == 1 and row["longest"]:
            longest = ", ".join(
                f"{each['name'][:40]} {each['ms']:.2f}" for each in row["longest"][:SHOWN]
            )
            lines.append(f"- {row['kernels']}, load 1, ms: {longest}")
    return lines


def ordered(kinds: dict[str, float]) -> list[float]:
    """The milliseconds in the order of the table's columns."""
    return [kinds[name] for name in ("products", "attention", "copies", "other")]
