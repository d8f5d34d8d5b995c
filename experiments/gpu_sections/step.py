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
FEW, MORE = (4, 14) if device.name == "cuda" else (2, 4)
"""New tokens of the trials whose difference is the time of steps alone, without the prompt."""
PROFILED_FEW, PROFILED_MORE = 2, 4
SHOWN = 4
KEPT = 12
"""Kernels of a step in the table, and in the JSON."""
Row = dict[str, Any]


def decoding_step(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Wall time, the device's part of it and its launches, of a step of continuous batching.

    No CUDA graphs: if the wall time is far above the device's, the host is what a step waits for.
    All wall times are measured before the first profile: a profiler may stay attached.
    """
    del options
    rows: list[Row] = []
    failures: list[str] = []
    if clock.spent():
        return {"rows": rows, "failures": failures, "unfinished": True}
    loads = tuple(device.few(LOADS))
    engine, trials = engine_for(large_llama(), KERNELS, loads, 2 * sum(loads), tokens=MORE)
    measured = []
    try:
        for measure in (wall, profiled):
            for trial in trials:
                if clock.spent():
                    break
                with noted(failures, f"{trial.condition.condition_id}, {measure.__name__}"):
                    measured.append(measure(engine, trial, rows))
    finally:
        engine.close()
    unfinished = len(measured) + len(failures) < 2 * len(trials)
    return {"rows": rows, "failures": failures, "unfinished": unfinished}


def wall(engine: Any, trial: Any, rows: list[Row]) -> None:
    """Add a row with the wall time of a step."""
    engine.run_trial(trial)  # tiles are chosen, kernels compiled
    milliseconds = min(step_ms(engine, trial) for _ in range(2))
    condition = trial.condition
    rows.append(
        {"kernels": condition.kernels, "load": condition.batch_size, "wall_ms": milliseconds}
    )


def profiled(engine: Any, trial: Any, rows: list[Row]) -> None:
    """Add to the trial's row the kernels of a step."""
    condition = trial.condition
    name = condition.kernels, condition.batch_size
    row = next(row for row in rows if (row["kernels"], row["load"]) == name)
    profiles = [
        kernel_times(lambda n=tokens: engine.run_trial(shortened(trial, n)))
        for tokens in (PROFILED_FEW, PROFILED_MORE)
    ]
    kernels = a_step(*profiles, PROFILED_MORE - PROFILED_FEW)
    layers = engine.loaded.model.config.num_hidden_layers
    row |= {
        "device_ms": sum(kernel.ms for kernel in kernels),
        "launches_a_layer": sum(kernel.launches for kernel in kernels) / layers,
        "ms_by_kind": by_kind(kernels),
        "longest": [asdict(kernel) for kernel in kernels[:KEPT]],
    }


def step_ms(engine: Any, trial: Any) -> float:
    """Milliseconds that each token beyond FEW adds."""
    short, long = (engine.run_trial(shortened(trial, tokens)).elapsed_s for tokens in (FEW, MORE))
    return float(long - short) * 1000 / (MORE - FEW)


def show_step(result: dict[str, Any]) -> list[str]:
    """One line a setting and load; then the kernels that take longest, for a request alone."""
    rows = sorted(result["rows"], key=lambda row: (row["load"], row["kernels"] != "stock"))
    lines = [
        "8B shape, random weights, one decoding step without CUDA graphs; ms on the device by kind",
        "",
        "| kernels | load | wall ms | device ms | products | attention | copies | other "
        "| launches a layer |",
        "|---" * 9 + "|",
        *map(line_of, rows),
        "",
    ]
    for row in rows:
        if row["load"] == 1 and row.get("longest"):
            longest = ", ".join(
                f"`{each['name'][:40]}` {each['ms']:.2f}" for each in row["longest"][:SHOWN]
            )
            lines.append(f"- {row['kernels']}, load 1, ms: {longest}")
    return lines


def line_of(row: Row) -> str:
    """A row of the table; without a profile, the wall time alone."""
    cells = [row["kernels"], str(row["load"]), f"{row['wall_ms']:.1f}"]
    if "device_ms" in row:
        kinds = [row["ms_by_kind"][name] for name in ("products", "attention", "copies", "other")]
        cells += [f"{ms:.2f}" for ms in (row["device_ms"], *kinds)]
        cells.append(f"{row['launches_a_layer']:.1f}")
    else:
        cells += ["–"] * 6
    return "| " + " | ".join(cells) + " |"
