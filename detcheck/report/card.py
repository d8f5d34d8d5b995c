"""A card of a report: one question, and its answer in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Group
from detcheck.text import count

GOOD = "good"
BAD = "bad"
OPEN = "open"
"""Neither good nor bad: it is not known, or there is nothing to judge."""


@dataclass(frozen=True, slots=True)
class Card:
    """One question, its answer in a few words, and one line of detail."""

    question: str
    answer: str
    detail: str
    mark: str
    """GOOD, BAD or OPEN."""


def completions_of(groups: Sequence[Group]) -> int:
    """How many completions came back."""
    return sum(group.completions for group in groups)


def most_varied_of(groups: Sequence[Group]) -> Group:
    """The group with the most answers to one seed; the first of them if several have as many."""
    return max(groups, key=lambda group: group.distinct_within_seed)


def answers_of(group: Group, *, several: bool) -> str:
    """How many answers a group has: `12 distinct of 1,000`, `up to 3 per seed`.

    `several`: the group is the most varied one of several prompts.
    """
    distinct = group.distinct_within_seed
    at_most = "" if distinct == 1 else "up to "
    if len(group.by_seed) > 1:
        return f"{at_most}{distinct:,} for each {group.sample}"
    if several:
        return f"{at_most}{distinct:,} distinct each"
    return f"{distinct:,} distinct of {group.completions:,}"


def samples_sentence(group: Group) -> str:
    """The number of samples asked for, and the sources of the answers; empty with one seed."""
    if len(group.by_seed) <= 1:
        return ""
    return (
        f"You asked for {count(len(group.by_seed), 'sample')} and got "
        f"{group.answers_from_seeds:,} from the {group.sample}s and "
        f"{group.answers_from_system:,} from the system"
    )
