"""Progress of a run on stderr: one bar for the whole run, one for the condition at hand."""

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
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from detcheck.cli.console import print_line, stderr, untrusted
from detcheck.engines.base import InFlight
from detcheck.evidence import EndpointCheck, ModelIdentity
from detcheck.listener import Listener
from detcheck.rundir import ENOUGH, ConditionRecord
from detcheck.text import count

LONG_WAIT_S = 5.0
"""A wait that is longer is reported without a terminal too."""
NARROW = 72
"""Below this many columns there is no room for bars: numbers and the time left remain."""


class ProgressListener(Listener):
    """Prints a line when a condition ends; on a terminal there are bars below these lines.

    `waiting` is shown until the first condition begins.
    """

    def __init__(self, waiting: str = "loading the model …") -> None:
        self._waiting = waiting
        self._status: Any = None
        self._timer: Timer | None = None
        self._whole: TaskID | None = None
        self._answered: dict[int, int] = {}
        """Requests that were answered or have failed, by condition."""
        self._current: TaskID | None = None
        self._distinct: dict[int, int] = {}
        self._requests = ""
        self._speed: dict[int, tuple[int, float]] = {}
        self._several_prompts = False
        self._progress = Progress(*_columns(), console=stderr, disable=not stderr.is_terminal)

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
        """One line for each check; failed checks stand out."""
        self._stop_status()
        for check in checks:
            where = f"{check.placement}, " if check.placement else ""
            style = "yellow" if check.holds is False else "dim"
            print_line(f"{where}{check.name}: {check.sentence}", style, console=stderr)

    def model_identified(self, identity: ModelIdentity) -> None:
        """Say once which decoding options are not the experiment's."""
        if identity.decoding:
            self._stop_status()
            options = "; ".join(f"{name}: {value}" for name, value in identity.decoding.items())
            print_line(f"decoding options of the model: {options}", "yellow", console=stderr)

    def run_started(self, path: Path, conditions: list[ConditionRecord]) -> None:
        """The model is loaded: from now on there are bars."""
        self._stop_status()
        self._several_prompts = any(record.prompt_index for record in conditions)
        print_line(f"run directory: {path}", "dim", console=stderr)
        self._answered = {index: _answered(record) for index, record in enumerate(conditions)}
        self._whole = self._progress.add_task(
            "",
            total=sum(record.asked for record in conditions),
            completed=sum(self._answered.values()),
            name="all conditions",
            known="",
        )
        self._progress.start()

    def condition_started(self, index: int, record: ConditionRecord) -> None:
        """A new bar, which begins with the completions that a resumed run has already."""
        self._remove_current()
        self._current = self._progress.add_task(
            "", total=record.asked, completed=record.completed, name=self._name(record), known=""
        )

    def _name(self, record: ConditionRecord) -> Any:
        prompt = f"prompt {record.prompt_index + 1}, " if self._several_prompts else ""
        place = f", {record.placement}" if record.placement else ""
        seed = f", seed {record.seed}" if "/s" in record.condition_id else ""
        return untrusted(f"{prompt}{record.kernels}, batch size {record.batch_size}{seed}{place}")

    def tokens_generated(self, index: int, tokens: int) -> None:
        """Tokens of the trial in flight, beside the bar; a wait before it is over."""
        self._stop_timer()
        counted = f"{count(tokens, 'token')}{self._rate(index, tokens)}"
        parts = (self._known(index), self._requests, counted)
        self._update(known=", ".join(part for part in parts if part))

    def requests_in_flight(self, index: int, requests: InFlight) -> None:
        """Kept, and shown with the next count of tokens."""
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
        self._stop_timer()
        self._distinct[index] = distinct
        self._requests = ""
        self._update(completed=_answered(record), known=self._known(index))
        self._answered[index] = _answered(record)
        self._update_whole()

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        """The condition's bar goes, and one line that stays says how it ended."""
        self._answered[index] = _answered(record) if record.status == ENOUGH else record.asked
        self._remove_current()
        self._update_whole()
        self._print_end(index, record)

    def _remove_current(self) -> None:
        if self._current is not None:
            self._progress.remove_task(self._current)
            self._current = None

    def _update_whole(self) -> None:
        if self._whole is not None:
            self._progress.update(self._whole, completed=sum(self._answered.values()))

    def _print_end(self, index: int, record: ConditionRecord) -> None:
        rate = record.tokens_per_second
        speed = f", {rate:,.0f} tokens/s" if rate else ""
        if record.failures:
            kinds = ", ".join(f"{number} {kind}" for kind, number in record.failures.items())
            speed += f", failed: {kinds}"
        print_line(
            f"{record.condition_id}: {record.completed} of {count(record.asked, 'completion')}, "
            f"{self._known(index) or record.error or record.status}{speed}",
            console=stderr,
        )

    def interrupted(self) -> None:
        """The bars go, and a line says that nothing is lost."""
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

    def _update(self, **fields: Any) -> None:
        if self._current is not None:
            self._progress.update(self._current, **fields)


def _answered(record: ConditionRecord) -> int:
    return record.completed + record.failed


def _columns() -> list[ProgressColumn]:
    """The columns that the terminal has room for."""
    whole = Column(no_wrap=True, overflow="ellipsis")
    name = TextColumn("{task.fields[name]}", markup=False, table_column=whole)
    if stderr.width < NARROW:
        return [name, MofNCompleteColumn(), TimeRemainingColumn(compact=True)]
    known = TextColumn("{task.fields[known]}", markup=False, table_column=whole)
    return [name, BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), known]
