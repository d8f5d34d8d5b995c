"""Which sections there are, in order of value, and a model of the time that they need. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from gpu_sections.clock import Clock

SPARE = 1.3
"""A section may take this much longer than the model says, so that a slower card finishes too."""
NOTHING_TO_DO_S = 1.0
LEAST_S = 5.0
"""A section with less time than this would measure nothing worth having."""


@dataclass(frozen=True)
class Cost:
    """One kind of step of a section: how many there are, and what one takes on an H100."""

    what: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    name: str
    module: str
    """In this package; it imports torch, which the supervisor does without."""
    measuring: str
    showing: str
    costs: tuple[Cost, ...]
    needs: tuple[str, ...] = ()
    """Packages; without any of them the section has nothing to do."""

    @property
    def seconds(self) -> float:
        """What the section is expected to take."""
        if self.needs and not any(map(find_spec, self.needs)):
            return NOTHING_TO_DO_S
        return sum(cost.count * cost.seconds for cost in self.costs)

    def measure(self, clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
        """The section's result, as plain data; what there is when the clock is spent."""
        function: Callable[..., dict[str, Any]] = self._function(self.measuring)
        return function(clock, options)

    def show(self, result: dict[str, Any]) -> list[str]:
        """Lines of the table, in Markdown."""
        function: Callable[..., list[str]] = self._function(self.showing)
        return function(result)

    def _function(self, name: str) -> Any:
        return getattr(import_module(f"gpu_sections.{self.module}"), name)


CHECK, TIMED, SEARCH = 0.16, 0.035, 0.05
"""Seconds of a correctness check, of timing one call, of choosing a tile. These and the numbers
below are those of an H100 whose host takes 32 ms to launch a decoding step of an 8B shape."""
LOADING = Cost("model and engine", 1, 12.0)

SECTIONS = (
    Section("correctness", "correctness", "correctness", "show_correctness", (
        Cost("linear layers and depths", 33, 2 * CHECK),
        Cost("heads", 15, 2 * CHECK),
        Cost("windows, sinks and caps", 9, 2 * CHECK),
        Cost("row ops and lengths", 135, CHECK / 4),
        Cost("experts", 6, CHECK),
        Cost("sums in order", 3, CHECK),
    )),
    Section("source", "source", "source", "show_source", (Cost("experiment", 1, 1.5),)),
    Section("variants", "variants", "variants", "show_variants", (
        LOADING, Cost("settings", 3, 27.0), Cost("loads with CUDA graphs", 2, 4.0),
    )),
    Section("end to end", "end_to_end", "end_to_end", "show_end_to_end", (
        LOADING, Cost("settings", 3, 20.0),
    )),
    Section("graphs", "graphs", "decode_graphs", "show_graphs", (
        Cost("settings and loads", 12, 2.5),
    )),
    Section("overhead", "overhead", "launch_overhead", "show_overhead", (Cost("calls", 4, 0.2),)),
    Section("step", "step", "decoding_step", "show_step", (
        Cost("settings and loads", 6, 4.0),
    )),
    Section("attention", "attention", "attention_speed", "show_attention", (
        Cost("shapes", 16, 5 * TIMED + 2 * SEARCH),
    )),
    Section("matmul", "matmul", "matmul_speed", "show_matmul", (
        Cost("layers and rows", 240, 2 * TIMED + SEARCH),
    )),
    Section("classes", "classes", "matmul_classes", "show_classes", (
        Cost("kinds", 9, 0.8), Cost("heads", 6, 0.5), Cost("layers", 30, 0.3),
    )),
    Section("served", "served", "served_modes", "show_served", (
        Cost("servers and models", 6, 100.0),
    ), needs=("vllm", "sglang")),
    Section("tiles", "tiles", "tile_search", "show_tiles", (
        Cost("layers and rows", 24, 12 * TIMED + 20 * SEARCH),
    )),
)  # fmt: skip
"""In order of value: correctness, whole models, then sweeps. The last sections are those that a
slow machine does without. `step` needs a profiler, which may slow later launches down. So the
sections that time the host come before it. The first four and a half minutes show that the kernels
are right, how many answers a model gives, what one costs, and where a decoding step's time goes."""
FIRST = (
    *("correctness", "source", "variants", "end to end"),
    *("graphs", "overhead", "step", "attention"),
)
FIRST_S = 270.0


def named(names: str | None) -> list[Section]:
    """The sections of `names`, joined by commas; all of them for None."""
    wanted = None if names is None else names.split(",")
    return [section for section in SECTIONS if wanted is None or section.name in wanted]


def budgets(sections: Sequence[Section], seconds: float) -> dict[str, float]:
    """The seconds of each section, given out in order of value; 0 if nothing is left for it.

    A section gets what it needs and some to spare. What one leaves goes to those after it.
    """
    left = seconds
    given: dict[str, float] = {}
    for section in sections:
        most = min(left, section.seconds * SPARE)
        given[section.name] = most if most >= min(LEAST_S, section.seconds) else 0.0
        left -= min(given[section.name], section.seconds)
    return given


def table(sections: Sequence[Section], seconds: float) -> list[str]:
    """The plan in Markdown: what each section needs, and what it may take."""
    given = budgets(sections, seconds)
    lines = ["| section | needs s | may take s | steps |", "|---|---|---|---|"]
    for section in sections:
        steps = ", ".join(f"{cost.count} {cost.what}" for cost in section.costs)
        lines.append(
            f"| {section.name} | {section.seconds:.0f} | {given[section.name]:.0f} | {steps} |"
        )
    total = sum(section.seconds for section in sections)
    return [*lines, f"| all | {total:.0f} | {seconds:.0f} | |"]
