"""The process that measures: tells its supervisor of each section, one JSON object a line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from typing import Any

from gpu_sections import plan
from gpu_sections.clock import Clock
from gpu_sections.common import error_text
from gpu_sections.device import device

NO_GPU = 2
GPU_IS_LOST = 3
"""Exit codes: there is no GPU, and an error left it unusable to this process."""


def measure_all(options: argparse.Namespace) -> int:
    """Measure the sections that are asked for; returns the exit code."""
    problem = why_not_here()
    if problem is not None:
        tell(fatal=problem)
        return NO_GPU
    tell(environment=environment())
    if options.plain:
        use_plain_kernels()
    whole = Clock(options.minutes * 60)
    sections = plan.named(options.sections)
    for number, section in enumerate(sections):
        seconds = plan.budgets(sections[number:], whole.left())[section.name]
        if device.name == "cpu":  # the model of the time is a GPU's
            seconds = whole.left()
        tell(begin=section.name, seconds=seconds)
        tell(end=section.name, result=measured(section, seconds, options))
        if not gpu_answers():
            return GPU_IS_LOST
    return 0


def why_not_here() -> str | None:
    """None if there is a device to measure, else a sentence."""
    import torch

    if device.name == "cuda" and not torch.cuda.is_available():
        return "experiments/gpu.py needs an NVIDIA GPU: PyTorch sees none here."
    return None


def use_plain_kernels() -> None:
    """Leave out features that may have lost a process: descriptors, and cuBLASLt."""
    from detcheck.kernels.triton import configs, cublas

    configs.HOPPER = tuple(entry for entry in configs.HOPPER if not entry[1].descriptors)
    os.environ[cublas.VARIABLE] = "triton"
    cublas.is_enabled.cache_clear()


def environment() -> dict[str, Any]:
    """The environment; if it cannot be read, the error."""
    from detcheck import environment

    try:
        return environment.collect(device.name)
    except Exception as error:  # no measurement should fail because of it
        return {"error": error_text(error)}


def measured(section: plan.Section, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """One section's result, or why there is none; and its lines of the table."""
    if seconds <= 0:
        return {"skipped": "no time was left", "table": ["skipped: no time was left"]}
    print(f"{section.name} (up to {seconds:.0f} s) …", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        result = section.measure(Clock(seconds), options)
        result["table"] = section.show(result)
    except Exception as error:  # the other sections are still worth having
        traceback.print_exc()
        text = error_text(error, 500)
        result = {"error": text, "table": [f"error: {text}"]}
    uncaptured = device.take_uncaptured()
    if uncaptured:
        result["uncaptured"] = uncaptured
    return {**result, "elapsed_s": round(time.monotonic() - started, 1)}


def gpu_answers() -> bool:
    """Whether the GPU still works for this process; gives back the memory of the section."""
    try:
        device.synchronize()
        device.empty_cache()
    except Exception:
        return False
    return True


def tell(**event: Any) -> None:
    """Send one event to the supervisor."""
    print(json.dumps(event, default=str), flush=True)
