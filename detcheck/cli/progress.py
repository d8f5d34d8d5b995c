"""Progress of a run on stderr: a bar for each condition, with what is known so far."""

from __future__ import annotations

from pathlib import Path
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
from detcheck.rundir import ConditionRecord
from detcheck.runner import Listener


class ProgressListener(Listener):
    """Shows a bar a condition; without a terminal, one line when a condition ends."""

    def __init__(self) -> None:
        self._status: Any = None
        self._tasks: dict[int, TaskID] = {}
        self._distinct: dict[int, int] = {}
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
            self._status = stderr.status("loading the model …")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop_status()
        self._progress.stop()

    def run_started(self, path: Path, conditions: list[ConditionRecord]) -> None:
        """The model is loaded: from now on there are bars."""
        self._stop_status()
        self._several_prompts = any(record.prompt_index for record in conditions)
        print_line(f"run directory: {path}", "dim", console=stderr)
        self._progress.start()

    def condition_started(self, index: int, record: ConditionRecord) -> None:
        """A new bar, at what a resumed run has already."""
        prompt = f"prompt {record.prompt_index + 1}, " if self._several_prompts else ""
        name = untrusted(f"{prompt}{record.kernels}, batch size {record.batch_size}")
        self._tasks[index] = self._progress.add_task(
            "", total=record.asked, completed=record.completed, name=name, known=""
        )

    def tokens_generated(self, index: int, tokens: int) -> None:
        """Tokens of the trial in flight, beside the bar."""
        known = f"{self._known(index)} {tokens:,} tokens"
        self._progress.update(self._tasks[index], known=known.strip())

    def trial_finished(self, index: int, record: ConditionRecord, distinct: int) -> None:
        """Completions so far, and how many different ones there are."""
        self._distinct[index] = distinct
        done = record.completed + record.failed
        self._progress.update(self._tasks[index], completed=done, known=self._known(index))

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        """Without a terminal this line is all there is to see."""
        if stderr.is_terminal:
            return
        rate = record.tokens_per_second
        speed = f", {rate:,.0f} tokens/s" if rate else ""
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
        if self._status is not None:
            self._status.stop()
            self._status = None
