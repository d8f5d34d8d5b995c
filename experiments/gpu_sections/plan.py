"""Which sections there are, how long each may take, and where its functions are."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gpu_sections.clock import Clock


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    name: str
    seconds: float
    module: str
    """In this package; imports torch, which the supervisor does without."""
    measuring: str
    showing: str

    def measure(self, clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
        """What it measured, as plain data."""
        function: Callable[..., dict[str, Any]] = self._function(self.measuring)
        return function(clock, options)

    def show(self, result: dict[str, Any]) -> list[str]:
        """Lines of the table, Markdown."""
        function: Callable[..., list[str]] = self._function(self.showing)
        return function(result)

    def _function(self, name: str) -> Any:
        return getattr(import_module(f"gpu_sections.{self.module}"), name)


SECTIONS = (
    Section("correctness", 75, "correctness", "correctness", "show_correctness"),
    Section("source", 10, "source", "source", "show_source"),
    Section("matmul", 90, "matmul", "matmul_speed", "show_matmul"),
    Section("end to end", 85, "end_to_end", "end_to_end", "show_end_to_end"),
    Section("variants", 65, "variants", "variants", "show_variants"),
    Section("attention", 25, "attention", "attention_speed", "show_attention"),
    Section("classes", 20, "classes", "matmul_classes", "show_classes"),
    Section("overhead", 10, "overhead", "launch_overhead", "show_overhead"),
    Section("tiles", 45, "tiles", "tile_search", "show_tiles"),
)
"""In order of worth: what comes late is what a slow machine may have to do without."""


def named(names: str | None) -> list[Section]:
    """The sections of `names`, joined by commas; all of them for None."""
    wanted = None if names is None else names.split(",")
    return [section for section in SECTIONS if wanted is None or section.name in wanted]
