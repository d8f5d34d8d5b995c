"""Everything that needs the card, unattended, in under 8 minutes: what `make gpu` runs.

    python experiments/gpu.py [--sections matmul,attention] [--model DIR] [--minutes 7.5]

Needs torch, triton and transformers, and one NVIDIA GPU (sm_80 and up; meant for Hopper). Each
section has a share of the time, keeps what it has measured when that is spent, and records its own
failure instead of losing the others'. Writes `results/gpu/gpu.json` after each section, with the
environment, and `results/gpu/table.md`; prints the table last. Exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # also where detcheck is not installed
RESULTS = ROOT / "results" / "gpu"

from gpu_clock import Clock  # noqa: E402  (found through the line above)


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    name: str
    seconds: float
    measure: Callable[[Clock, argparse.Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], list[str]]
    """Lines of the table, Markdown."""


def sections() -> list[Section]:
    """In order of worth: what comes late is what a slow machine may have to do without."""
    import gpu_kernels as kernels
    import gpu_models as models

    return [
        Section("correctness", 75, kernels.correctness, kernels.show_correctness),
        Section("source", 15, kernels.source, kernels.show_source),
        Section("classes", 45, kernels.matmul_classes, kernels.show_classes),
        Section("matmul", 90, kernels.matmul_speed, kernels.show_matmul),
        Section("attention", 45, kernels.attention_speed, kernels.show_attention),
        Section("overhead", 10, kernels.launch_overhead, kernels.show_overhead),
        Section("end to end", 75, models.end_to_end, models.show_end_to_end),
        Section("variants", 60, models.variants, models.show_variants),
        Section("tiles", 45, kernels.tile_search, kernels.show_tiles),
    ]


def main() -> None:
    """Measure, write and print; see the module."""
    options = arguments()
    import torch

    if not torch.cuda.is_available():
        sys.exit("experiments/gpu.py needs an NVIDIA GPU: PyTorch sees none here.")
    from detcheck import environment

    wanted = options.sections.split(",") if options.sections else None
    report: dict[str, Any] = {"environment": environment.collect("cuda"), "sections": {}}
    whole = Clock(options.minutes * 60)
    chosen = [section for section in sections() if wanted is None or section.name in wanted]
    for section in chosen:
        seconds = min(section.seconds, whole.left())
        report["sections"][section.name] = measured(section, seconds, options)
        write(report, chosen)
    print("\n".join(table(report, chosen)))
    sys.exit(1 if any(failed(result) for result in report["sections"].values()) else 0)


def measured(section: Section, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """One section's result, or why there is none."""
    import torch

    if seconds < 2:
        return {"skipped": "no time was left"}
    print(f"{section.name} (up to {seconds:.0f} s) …", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        result = section.measure(Clock(seconds), options)
    except Exception as error:  # whatever it is, the other sections are worth having
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:500]}
    torch.cuda.empty_cache()
    return {**result, "elapsed_s": round(time.monotonic() - started, 1)}


def failed(result: dict[str, Any]) -> bool:
    """Whether a section could not be measured, or found what it must not."""
    return "error" in result or bool(result.get("failures"))


def write(report: dict[str, Any], chosen: list[Section]) -> None:
    """Write what there is so far."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, default=str)
    (RESULTS / "gpu.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "table.md").write_text("\n".join(table(report, chosen)) + "\n", encoding="utf-8")


def table(report: dict[str, Any], chosen: list[Section]) -> list[str]:
    """The report in a page of Markdown."""
    environment = report["environment"]
    gpu, packages = environment.get("gpu", {}), environment.get("packages", {})
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "triton", "transformers")
        if name in packages
    )
    lines = [f"**{gpu.get('name')}**, CUDA {gpu.get('cuda')}, {versions}", ""]
    for section in chosen:
        result = report["sections"].get(section.name)
        if result is not None:
            lines += [
                f"### {section.name} ({result.get('elapsed_s', 0)} s)",
                *shown(section, result),
                "",
            ]
    return lines


def shown(section: Section, result: dict[str, Any]) -> list[str]:
    """A section's lines, or its failure."""
    for word in ("error", "skipped"):
        if word in result:
            return [f"{word}: {result[word]}"]
    return section.show(result)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", help="names joined by commas (default: all)")
    parser.add_argument("--model", help="folder of the model for the variants (default: embedded)")
    parser.add_argument("--minutes", type=float, default=7.5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
