"""Progress of a run on stderr: a bar for each condition, with what is known so far."""

from __future__ import annotations

from pathlib import Path
from threading import Timer
from time import monotonic
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from detcheck.cli.console import print_line, stderr, untrusted
from detcheck.engines.base import InFlight
from detcheck.evidence import EndpointCheck
from detcheck.rundir import ConditionRecord
from detcheck.runner import Listener

LONG_WAIT_S = 5.0
"""A wait that is longer is reported without a terminal too."""


class ProgressListener(Listener):
    """Shows a bar a condition; without a terminal, one line when a condition ends."""

    def __init__(self, waiting: str = "loading the model …") -> None:
        self._waiting = waiting
        self._status: Any = None
        self._timer: Timer | None = None
        self._tasks: dict[int, TaskID] = {}
        self._distinct: dict[int, int] = {}
        self._requests = ""
        self._speed: dict[int, tuple[int, float]] = {}
        self._several_prompts = False
        self._progress = Progress(
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[known]}", markup=False),
            TimeElapsedColumn(),
            console=stderr,
            disable=not stderr.is_terminal,
        )

    def __enter__(self) -> ProgressListener:
        if stderr.is_terminal:
            self._status = stderr.status(self._waiting)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop_status()
        self._progress.stop()

    def waiting_for(self, phrase: str) -> None:
        """Shown at once in a terminal; without one, as a line if the wait is long."""
        if self._status is not None:
            self._status.update(untrusted(phrase))
            return
        self._stop_timer()
        line = f"{phrase} …"
        self._timer = Timer(LONG_WAIT_S, print_line, (line, "dim"), {"console": stderr})
        self._timer.daemon = True
        self._timer.start()

    def endpoints_checked(self, checks: tuple[EndpointCheck, ...]) -> None:
        """A line a check; those that failed stand out."""
        self._stop_status()
        for check in checks:
            where = f"{check.placement}, " if check.placement else ""
            style = "yellow" if check.holds is False else "dim"
            print_line(f"{where}{check.name}: {check.sentence}", style, console=stderr)

    def run_started(self, path: Path, conditions: list[ConditionRecord]) -> None:
        """The model is loaded: from now on there are bars."""
        self._stop_status()
        self._several_prompts = any(record.prompt_index for record in conditions)
        print_line(f"run directory: {path}", "dim", console=stderr)
        self._progress.start()

    def condition_started(self, index: int, record: ConditionRecord) -> None:
        """A new bar, at what a resumed run has already."""
        prompt = f"prompt {record.prompt_index + 1}, " if self._several_prompts else ""
        where = f", {record.placement}" if record.placement else ""
        name = untrusted(f"{prompt}{record.kernels}, batch size {record.batch_size}{where}")
        self._tasks[index] = self._progress.add_task(
            "", total=record.asked, completed=record.completed, name=name, known=""
        )

    def tokens_generated(self, index: int, tokens: int) -> None:
        """Tokens of the trial in flight, beside the bar."""
        counted = f"{tokens:,} tokens{self._rate(index, tokens)}"
        parts = (self._known(index), self._requests, counted)
        known = ", ".join(part for part in parts if part)
        self._progress.update(self._tasks[index], known=known)

    def requests_in_flight(self, index: int, requests: InFlight) -> None:
        """Shown with the next count of tokens."""
        failed = f", {requests.failed} failed" if requests.failed else ""
        self._requests = f"{requests.in_flight} in flight, {requests.done} done{failed}"

    def _rate(self, index: int, tokens: int) -> str:
        """Tokens a second since the trial began."""
        now = monotonic()
        before, since = self._speed.get(index, (0, now))
        if tokens < before or index not in self._speed:  # a new trial counts from 0
            since = now
        self._speed[index] = (tokens, since)
        return f", {tokens / (now - since):,.0f}/s" if now > since else ""

    def trial_finished(self, index: int, record: ConditionRecord, distinct: int) -> None:
        """Completions so far, and how many different ones there are."""
        self._distinct[index] = distinct
        self._requests = ""
        done = record.completed + record.failed
        self._progress.update(self._tasks[index], completed=done, known=self._known(index))

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        """Without a terminal this line is all there is to see."""
        if stderr.is_terminal:
            return
        rate = record.tokens_per_second
        speed = f", {rate:,.0f} tokens/s" if rate else ""
        if record.failures:
            kinds = ", ".join(f"{number} {kind}" for kind, number in record.failures.items())
            speed += f", failed: {kinds}"
        print_line(
            f"{record.condition_id}: {record.completed} of {record.asked} completions, "
            f"{self._known(index) or record.error or record.status}{speed}",
            console=stderr,
        )

    def interrupted(self) -> None:
        """Say that nothing is lost."""
        self._progress.stop()
        print_line("interrupted: committed trials are kept.", "yellow", console=stderr)

    def _known(self, index: int) -> str:
        distinct = self._distinct.get(index)
        return "" if distinct is None else f"distinct so far: {distinct}"

    def _stop_status(self) -> None:
        self._stop_timer()
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
