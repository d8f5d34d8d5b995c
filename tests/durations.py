"""How long each test took: a report that every run leaves, slowest first.

`test-durations.csv` at the root holds the seconds of processor time (of the test and of the
programs that it started) and the seconds on the clock. The terminal shows the total and the first
few. `make test-fast` is meant to stay under 120 seconds of processor time.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[1] / "test-durations.csv"
SHOWN = 10


@dataclass(frozen=True)
class Duration:
    """The seconds of one test, with its fixtures."""

    cpu_s: float
    wall_s: float
    test: str


class Durations:
    """The plugin: measures around each test, and writes at the end."""

    def __init__(self) -> None:
        self.found: list[Duration] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Measure one test."""
        cpu, wall = processor_seconds(), time.perf_counter()
        try:
            return (yield)
        finally:
            duration = Duration(processor_seconds() - cpu, time.perf_counter() - wall, item.nodeid)
            self.found.append(duration)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the report, and show the total and the slowest tests."""
        if not self.found:  # tests were only collected: the last report stays
            return
        slowest = sorted(self.found, key=lambda duration: -duration.cpu_s)
        with REPORT.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("cpu_s", "wall_s", "test"))
            writer.writerows((f"{x.cpu_s:.2f}", f"{x.wall_s:.2f}", x.test) for x in slowest)
        total = sum(duration.cpu_s for duration in self.found)
        terminalreporter.section(f"{total:.0f} s of processor time, {REPORT.name}")
        for duration in slowest[:SHOWN]:
            terminalreporter.line(f"{duration.cpu_s:7.2f} s  {duration.test}")


def processor_seconds() -> float:
    """Seconds that this process and its finished children have computed."""
    return sum(os.times()[:4])
