"""The records of loads: batches, statistics, caches. Import them from `analysis.results`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchSizeRow:
    """One batch size of a group in one place, summed up; over all seeds, or of one condition."""

    placement: str
    """Place of computation, such as `endpoint 2`; empty if the grid has only one place."""
    batch_size: int
    asked: int
    completions: int
    failed: int
    distinct: int
    """Distinct answers, whatever the seed."""
    most_common: int
    differ_from_reference: int
    """Completions whose answer is not the reference of their seed."""
    observed_rows_max: int
    """0 if batches were not observed."""
    observed_rows_mean: float | None
    tokens_per_second: float | None
    relative_cost: float | None
    """Time a token against stock at the same batch size; None for stock or without stock."""
    exact_repeats_differ: int | None
    """Completions of the trials that repeat trial 0 exactly and that differ from it, by answer or
    by one bit of a log-probability. None if there was no such trial, and for batches that a server
    forms, which cannot be repeated exactly."""
    failures: Mapping[str, int]
    """Failed requests by kind, fillers included; empty if the engine names no kinds."""
    retries: int
    """Requests that were sent again because nothing had been generated."""
    distinct_within_seed: int = 0
    """Most distinct answers of one seed."""
    repeats_differ: int | None = None
    """Completions of the trials that send the requests of trial 0 once more, whose answer differs
    from trial 0's; of servers too. None if there was no such trial."""
    seed: int | None = None
    """Wanted sample of this one condition, its seed or choice; None if it is over several."""
    choice: int | None = None
    """Number of the choice if this is one condition of several; None otherwise."""


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """The effect of a server's prefix cache: only the very first request finds it empty."""

    first_differs: bool | None
    """True if the first answer differs from every later one at its batch size; None if there were
    fewer than two later ones."""
    later: int
    """Later answers that the first was compared with."""
    hits: int | None
    """Prompt tokens that the server took from its cache; None if it does not count them."""


@dataclass(frozen=True, slots=True)
class BatchEvidence:
    """Whether the batches that were asked for were really formed."""

    observed: bool
    """True if every batch size that was asked for was seen in full in some forward pass."""
    asked_max: int
    observed_max: int
    sentence: str
    """For a person: `batches of up to 16 of 16 asked, counted over forward passes`."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the counts can and cannot say."""

    comparisons: int
    """Completions from a batch larger than one that were held against the reference. Exact repeats
    of a load count once: they could not have differed."""
    differing: int
    """Comparisons whose answer is not the reference."""
    differ_upper_bound: float | None
    """95 % upper bound (exact binomial) on the rate of differing answers under load, from
    `comparisons` alone; None if any completion differed."""
    coverage: float
    """Good-Turing: estimated share of answers that belong to a variant already seen."""
    chao1: float
    """Chao1: lower bound on the number of variants there are, unseen ones included."""
    effective_trials: int
    """Distinct compositions of load behind the counts: exact repeats add nothing."""


def sum_known(numbers: Iterable[int | None]) -> int | None:
    """The sum of the numbers that are known; None if none is."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
