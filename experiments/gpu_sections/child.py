"""The process that measures: tells its supervisor of each section, one JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from typing import Any

import torch

from gpu_sections import plan
from gpu_sections.clock import Clock

GPU_IS_LOST = 3
"""Exit code after an error that leaves the GPU unusable to this process."""


def measure_all(options: argparse.Namespace) -> int:
    """Measure the sections that are asked for; returns the exit code."""
    if not torch.cuda.is_available():
        tell(fatal="experiments/gpu.py needs an NVIDIA GPU: PyTorch sees none here.")
        return 2
    tell(environment=environment())
    if options.plain:
        use_plain_kernels()
    whole = Clock(options.minutes * 60)
    for section in plan.named(options.sections):
        seconds = min(section.seconds, whole.left())
        tell(begin=section.name, seconds=seconds)
        tell(end=section.name, result=measured(section, seconds, options))
        if not gpu_answers():
            return GPU_IS_LOST
    return 0


def use_plain_kernels() -> None:
    """Leave out what may be why a process was lost: descriptors, and segments of K."""
    from detcheck.kernels.triton import configs

    configs.HOPPER = tuple(entry for entry in configs.HOPPER if not entry[1].descriptors)
    configs.WIDEST_CUT = 0


def environment() -> dict[str, Any]:
    """The environment; where it cannot be read, why."""
    from detcheck import environment

    try:
        return environment.collect("cuda")
    except Exception as error:  # no measurement is to fail for it
        return {"error": f"{type(error).__name__}: {error}"}


def measured(section: plan.Section, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """One section's result, or why there is none; and its lines of the table."""
    if seconds < 2:
        return {"skipped": "no time was left", "table": ["skipped: no time was left"]}
    print(f"{section.name} (up to {seconds:.0f} s) …", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        result = section.measure(Clock(seconds), options)
        result["table"] = section.show(result)
    except Exception as error:  # whatever it is, the other sections are worth having
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"[:500]
        result = {"error": said, "table": [f"error: {said}"]}
    return {**result, "elapsed_s": round(time.monotonic() - started, 1)}


def gpu_answers() -> bool:
    """Whether the GPU still works for this process; gives back what the section held of it."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def tell(**event: Any) -> None:
    """One event to the supervisor."""
    print(json.dumps(event, default=str), flush=True)
