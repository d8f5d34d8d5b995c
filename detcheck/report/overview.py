"""The table of prompts: a row for each, to find the prompts whose answers vary most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Analysis, Group
from detcheck.kernels.settings import STOCK
from detcheck.report.costs import Cost, group_cost


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One prompt under one kernels setting, in numbers."""

    kernels: str
    distinct: int
    distinct_within_seed: int
    """Most answers to one seed; the same as `distinct` if there is only one."""
    num_seeds: int
    completions: int
    asked: int
    most_common: int
    first_divergence: int | None
    """Earliest position at which any answer leaves the reference; None if none does."""
    unit: str
    """What that counts: `token` or `character`."""
    flips: Mapping[str, int]
    """Flips by kind."""
    tokens_per_second: float | None
    cost: Cost | None
    sample: str = "seed"
    """The word for a wanted sample: `seed` or `choice`."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One row of the table of prompts."""

    prompt_index: int
    prompt: str
    groups: tuple[GroupRow, ...]
    """One for each kernels setting, stock first."""
    first_divergence: int | None
    """Earliest position at which any answer leaves its reference; None if none does."""
    unit: str
    """What that counts: `token` or `character`."""
    flips: Mapping[str, int]
    """Flips by kind, over all kernels settings."""
    agreement: float | None
    """Chance that two completions are equal, under stock kernels (else the first setting)."""
    cost: Cost | None
    """Of the first setting that was timed against stock."""
    id: str | None = None
    """Its name in the prompts file, if it has one."""

    @property
    def most_distinct(self) -> int:
        """The largest number of answers to one seed under one kernels setting."""
        return max(one.distinct_within_seed for one in self.groups)

    @property
    def several_seeds(self) -> bool:
        """True if the prompt was asked with more than one seed."""
        return any(one.num_seeds > 1 for one in self.groups)

    @property
    def quiet(self) -> bool:
        """True if every completion came back, and each seed has one answer whatever the load."""
        return all(
            one.distinct_within_seed == 1 and one.completions == one.asked for one in self.groups
        )


def overview(analysis: Analysis) -> tuple[PromptRow, ...]:
    """A row for each prompt of a run, most varied first."""
    items = analysis.run.experiment.items
    rows = [
        prompt_row(groups, items[index].id if items else None)
        for index, groups in groups_by_prompt(analysis).items()
    ]
    return tuple(sorted(rows, key=_variety))


def groups_by_prompt(analysis: Analysis) -> dict[int, list[Group]]:
    """The groups of a run by prompt index, in its order."""
    by_prompt: dict[int, list[Group]] = {}
    for group in analysis.groups:
        by_prompt.setdefault(group.prompt_index, []).append(group)
    return by_prompt


def prompt_row(groups: Sequence[Group], identifier: str | None = None) -> PromptRow:
    """The row of one prompt from its groups, one for each kernels setting, and its id."""
    rows = tuple(_group_row(group) for group in groups)
    diverged = [row for row in rows if row.first_divergence is not None]
    first = min(diverged, key=lambda row: row.first_divergence or 0, default=rows[0])
    flips: Counter[str] = Counter()
    for row in rows:
        flips.update(row.flips)
    control = next((group for group in groups if group.kernels == STOCK), groups[0])
    return PromptRow(
        prompt_index=groups[0].prompt_index,
        prompt=groups[0].prompt,
        groups=rows,
        first_divergence=first.first_divergence,
        unit=first.unit,
        flips=flips,
        agreement=chance_equal(control),
        cost=next((row.cost for row in rows if row.cost is not None), None),
        id=identifier,
    )


def chance_equal(group: Group) -> float | None:
    """Chance that two different completions of one seed are equal; None with fewer than two."""
    splits = [(group.completions, group.variants)]
    if len(group.by_seed) > 1:
        splits = [(split.completions, split.variants) for split in group.by_seed]
    pairs = sum(completions * (completions - 1) for completions, _ in splits)
    if not pairs:
        return None
    return sum(one.count * (one.count - 1) for _, variants in splits for one in variants) / pairs


def _variety(row: PromptRow) -> tuple[int, float, int]:
    """Most answers first, then the least agreement, then the run's order.

    A prompt without any completion comes before all others.
    """
    distinct = row.most_distinct
    agreement = 1.0 if row.agreement is None else row.agreement
    return (-distinct if distinct else -(1 << 62), agreement, row.prompt_index)


def _group_row(group: Group) -> GroupRow:
    return GroupRow(
        kernels=group.kernels,
        distinct=group.distinct,
        distinct_within_seed=group.distinct_within_seed,
        num_seeds=len(group.by_seed),
        sample=group.sample,
        completions=group.completions,
        asked=group.asked,
        most_common=group.most_common,
        first_divergence=group.first_divergence,
        unit=group.unit,
        flips=group.flips,
        tokens_per_second=group.tokens_per_second,
        cost=group_cost(group),
    )
