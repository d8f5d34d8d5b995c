"""A run within a limit of time: which trial to measure next, so that the requests tell most.

First every condition gets the least that a verdict needs, prompt after prompt. Then the group of
answers whose next completion is likeliest to be new gets the next trial.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from detcheck.errors import UsageError
from detcheck.evidence import MIN_COMPARISONS
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions, probes_per_trial
from detcheck.rundir import ConditionRecord
from detcheck.targets import Target

TRIALS_OF_ONE = 2
"""Least trials of a batch of one: the reference, and one repeat of it."""
GroupKey = tuple[int, str, int]
"""(prompt index, kernels, seed)."""
Answers = defaultdict[GroupKey, Counter[str]]
"""Completions by fingerprint, of each group so far."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a run may take, its checks and the loading of its model included."""

    seconds: float
    min_comparisons: int = MIN_COMPARISONS
    """Comparisons under a batch larger than one that every prompt gets first."""
    clock: Callable[[], float] = time.monotonic
    """The time now, in seconds."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"`budget` must be longer than zero seconds, not {self.seconds}.")

    def begin(self) -> Deadline:
        """The time that is left from now on."""
        return Deadline(self.clock() + self.seconds, self.clock)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a budget."""

    at: float
    clock: Callable[[], float]

    @property
    def left_s(self) -> float:
        """Seconds that are left; below zero after the end."""
        return self.at - self.clock()


def least_trials(
    experiment: Experiment, target: Target, cells: Sequence[Condition], min_comparisons: int
) -> list[int]:
    """Trials of each condition that a verdict needs at the least, as far as they were asked for.

    Every condition gets one. Then the larger batches of each prompt and kernels setting get more
    in turn, until these make `min_comparisons`.
    """
    least = [min(TRIALS_OF_ONE if c.batch_size == 1 else 1, _planned(experiment, c)) for c in cells]
    groups: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        if cell.batch_size > 1:
            groups[cell.prompt_index, cell.kernels].append(index)
    for indices in groups.values():
        # One more than needed: a completion may be the reference itself.
        while sum(_comparisons(experiment, target, cells[i], least[i]) for i in indices) <= (
            min_comparisons
        ):
            more = [i for i in indices if _tells_more(experiment, target, cells[i], least[i])]
            if not more:
                break
            for index in more:
                least[index] += 1
    return least


def _planned(experiment: Experiment, cell: Condition) -> int:
    return -(-cell.completions // probes_per_trial(cell.batch_size, experiment.traffic))


def _comparisons(experiment: Experiment, target: Target, cell: Condition, trials: int) -> int:
    """Completions under distinct loads that so many trials of a condition make."""
    probes = probes_per_trial(cell.batch_size, experiment.traffic)
    if target.traits.lockstep and experiment.traffic == "alone":
        return min(probes, cell.completions)
    repeats = experiment.repeat_trial if target.traits.repeats_exactly else 1
    return min(cell.completions, probes * (1 + max(0, trials - repeats)))


def _tells_more(experiment: Experiment, target: Target, cell: Condition, trials: int) -> bool:
    """True if later trials of a condition, as far as they were asked for, make comparisons."""
    planned = _planned(experiment, cell)
    at_the_end = _comparisons(experiment, target, cell, planned)
    return trials < planned and _comparisons(experiment, target, cell, trials) < at_the_end


class BudgetPlan:
    """The order of the trials of a run with a budget. Records change as trials are committed."""

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        records: Sequence[ConditionRecord],
        answers: Answers,
        min_comparisons: int,
    ):
        """`records` and `answers` are read again for each trial, as they are then."""
        cells = conditions(experiment, target)
        self._records = records
        self._reloads = target.traits.reloads
        self._planned = [_planned(experiment, cell) for cell in cells]
        self._least = least_trials(experiment, target, cells, min_comparisons)
        self._closed = [record.status == "done" for record in records]
        self._at = 0
        """Conditions before this one have what the present phase gives them."""
        self._wanted = self._least
        self._answers = answers
        self._members: defaultdict[GroupKey, list[int]] = defaultdict(list)
        for index, cell in enumerate(cells):
            self._members[group_of(cell)].append(index)
        self._heap: list[tuple[float, int, GroupKey]] | None = None

    def close(self, index: int) -> None:
        """A condition is measured to its end, or has failed: it gets no more trials."""
        self._closed[index] = True

    def has_least(self, index: int) -> bool:
        """True if a condition has the trials that a verdict needs."""
        return self._records[index].trials >= self._least[index]

    def is_whole(self, index: int) -> bool:
        """True if a condition has every trial that was asked for."""
        return self._records[index].trials >= self._planned[index]

    def due(self) -> Iterator[int]:
        """Index of the condition whose next trial is due, one trial after the other."""
        while (index := self._next()) is not None:
            yield index

    def _next(self) -> int | None:
        due = self._next_in_order()
        if due is None and self._wanted is self._least and self._reloads:
            self._wanted, self._at = self._planned, 0  # another order would load models again
            due = self._next_in_order()
        return self._next_by_worth() if due is None and not self._reloads else due

    def _next_in_order(self) -> int | None:
        while self._at < len(self._records):
            if not self._closed[self._at]:
                if self._records[self._at].trials < self._wanted[self._at]:
                    return self._at
                if self.is_whole(self._at):  # it was whole before this pass
                    return self._at
            self._at += 1
        return None

    def _next_by_worth(self) -> int | None:
        """The least measured condition of the group that has most to tell."""
        if self._heap is None:
            self._heap = [(-self._worth(key), n, key) for n, key in enumerate(self._members)]
            heapq.heapify(self._heap)
        while self._heap:
            before, number, key = self._heap[0]
            open_ones = [index for index in self._members[key] if not self._closed[index]]
            if not open_ones:
                heapq.heappop(self._heap)
            elif before != -self._worth(key):
                heapq.heapreplace(self._heap, (-self._worth(key), number, key))
            else:
                return min(open_ones, key=self._share)
        return None

    def _worth(self, key: GroupKey) -> float:
        """How likely the next completion of a group is a new answer (Good-Turing, plus one)."""
        counts = self._answers[key].values()
        return (1 + sum(number == 1 for number in counts)) / (1 + sum(counts))

    def _share(self, index: int) -> tuple[bool, float]:
        """Larger batches first, then the share of the trials that is measured."""
        record = self._records[index]
        return record.batch_size == 1, record.trials / self._planned[index]


def cost_kind(condition: Condition) -> tuple[str, str, int]:
    """Trials of one kind take about the same time."""
    return condition.kernels, condition.placement, condition.batch_size


def group_of(place: ConditionRecord | Condition) -> GroupKey:
    """The group of answers that a condition belongs to."""
    return place.prompt_index, place.kernels, place.seed
