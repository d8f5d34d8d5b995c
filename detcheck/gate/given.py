"""Everything that a rule of the gate may look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from detcheck.analysis.answers import AnswerStability, answer_stability
from detcheck.analysis.evidence import Finding, control_of
from detcheck.analysis.results import Analysis, Group
from detcheck.gate.baseline import Baseline
from detcheck.gate.levels import AtLevel, count_at_level
from detcheck.gate.options import GateOptions


@dataclass(frozen=True, slots=True)
class GateInput:
    """A run, the groups of it that are judged, and what they are held to."""

    analysis: Analysis
    groups: tuple[Group, ...]
    options: GateOptions
    control_run: Analysis | None
    """Another run that serves as the control; None if the run's own stock groups do."""
    baseline: Baseline | None
    """The accepted answers that the run is held to; None if there are none."""
    now: datetime
    at_level: Mapping[tuple[int, str], AtLevel]
    """The answers of each group, counted at its level; by (prompt index, kernels)."""
    unseen: Mapping[tuple[int, str], int]
    """Tokens that a server counted and never showed; by (prompt index, kernels)."""
    stabilities: tuple[AnswerStability, ...] = ()
    """The parsed answers of each judged kernels setting; empty without a limit on them."""

    def counts(self, group: Group) -> AtLevel:
        """The answers of a group, counted at the level it is judged by."""
        return self.at_level[group.prompt_index, group.kernels]

    def control(self, group: Group) -> Group | None:
        """The control of a group; None if there is none."""
        return control_of(self.analysis, group, self.control_run)

    def unseen_tokens(self, group: Group) -> int:
        """Tokens that a server counted in the answers of a group and never showed."""
        return self.unseen.get((group.prompt_index, group.kernels), 0)

    def num_held(self) -> int:
        """Judged groups that the baseline has accepted answers for, to one seed at least."""
        if self.baseline is None:
            return 0
        known = {(entry.prompt, entry.kernels) for entry in self.baseline.prompts}
        return sum((group.prompt, group.kernels) in known for group in self.groups)

    @property
    def age(self) -> timedelta:
        """Time since the run finished, or since it was started if it never finished."""
        run = self.analysis.run
        return self.now - datetime.fromisoformat(run.finished or run.created)


Rule = Callable[[GateInput], Iterable[Finding]]
"""A rule of the gate: a function that reports what it finds."""


def gate_input(
    analysis: Analysis,
    options: GateOptions,
    *,
    baseline: Baseline | None,
    control: Analysis | None,
    now: datetime,
) -> GateInput:
    """Choose the groups that `options` judge, and count their answers.

    Raises UsageError if the run lacks the kernels to judge, or a parser of answers is missing.
    """
    options = options.with_parser_of(analysis.run)
    kernels = options.kernels_of(analysis.run.experiment.kernels)
    groups = tuple(group for group in analysis.groups if group.kernels in kernels)
    counts = count_at_level(analysis, groups, options)
    unseen: Counter[tuple[int, str]] = Counter()
    for record in analysis.run.conditions:
        unseen[record.prompt_index, record.kernels] += record.unseen_tokens
    found = answer_stability(analysis, options.answer) if options.limits_answers else ()
    judged = tuple(stability for stability in found if stability.kernels in kernels)
    return GateInput(analysis, groups, options, control, baseline, now, counts, unseen, judged)
