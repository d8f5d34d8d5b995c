"""Which answers came back, and how often: completions counted by (condition, variant).

Later stages work on these counts. There is one for each (condition, variant) pair that occurred, so
their cost does not grow with the number of completions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detcheck.analysis.results import VariantCount
from detcheck.rundir import Run

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of (condition, variant) pairs, each array (pairs,), ordered by condition."""

    condition: IntArray
    variant: IntArray
    count: IntArray
    first_row: IntArray
    """First row of the completion table that belongs to the pair."""

    def of(self, conditions: Sequence[int]) -> Tally:
        """Only the pairs of these conditions, which are in ascending order."""
        starts = np.searchsorted(self.condition, conditions, side="left").tolist()
        stops = np.searchsorted(self.condition, conditions, side="right").tolist()
        ranges = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        keep = np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)
        return Tally(
            self.condition[keep], self.variant[keep], self.count[keep], self.first_row[keep]
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the completion table by condition, without a scan of the table for each."""

    order: IntArray
    """All rows, ordered by condition; (completions,)."""
    bounds: IntArray
    """`order[bounds[c]:bounds[c + 1]]` are the rows of condition c; (conditions + 1,)."""

    def of(self, conditions: Sequence[int]) -> IntArray:
        """Rows of these conditions, in the order they were recorded within each."""
        parts = [self.order[self.bounds[c] : self.bounds[c + 1]] for c in conditions]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def by_one_identity(run: Run) -> Run:
    """The run with each answer without token ids counted as the answer of the same text with ids.

    A server may give ids only now and then, or one of several servers may give none. That does not
    make a second answer of the same text.
    """
    known: dict[tuple[int, str], int] = {}
    for index, variant in enumerate(run.variants):
        if variant.token_ids is not None:
            known.setdefault((variant.prompt_index, variant.text), index)
    if len(known) in (0, len(run.variants)):
        return run
    same = np.arange(len(run.variants), dtype=np.int32)
    for index, variant in enumerate(run.variants):
        if variant.token_ids is None:
            same[index] = known.get((variant.prompt_index, variant.text), index)
    recorded = run.completions.variant
    merged = np.where(recorded >= 0, same[recorded], recorded)
    table = replace(run.completions, variant=merged)
    return replace(run, completions=table)


def tally(run: Run) -> Tally:
    """Count the completions that came back, by (condition, variant)."""
    table = run.completions
    rows = np.flatnonzero(table.variant >= 0)
    num_variants = max(1, len(run.variants))
    key = table.condition[rows].astype(np.int64) * num_variants + table.variant[rows]
    pairs, first, count = np.unique(key, return_index=True, return_counts=True)
    condition, variant = np.divmod(pairs, num_variants)
    return Tally(condition, variant, count.astype(np.int64), rows[first].astype(np.int64))


def rows_by_condition(run: Run) -> Rows:
    """Index the completion table by condition."""
    condition = run.completions.condition
    order = np.argsort(condition, kind="stable").astype(np.int64)
    counts = np.bincount(condition, minlength=len(run.conditions))
    return Rows(order, np.concatenate(([0], np.cumsum(counts))).astype(np.int64))


def pick_reference(run: Run, pairs: Tally) -> int | None:
    """Index of the variant that the others are compared with; None if no completion came back.

    It is the most common variant of the smallest batch size that has completions, in the first
    place that has any. Of equally common variants it is the one that was seen first.
    """
    if not len(pairs.condition):
        return None
    by_place = sorted(set(pairs.condition.tolist()), key=lambda index: place_and_size(run, index))
    first = place_and_size(run, by_place[0])
    chosen = [index for index in by_place if place_and_size(run, index) == first]
    smallest = np.flatnonzero(np.isin(pairs.condition, chosen))
    order = np.lexsort((pairs.first_row[smallest], -pairs.count[smallest]))
    return int(pairs.variant[smallest[order[0]]])


def place_and_size(run: Run, condition: int) -> tuple[int, int]:
    """(number of the place, batch size) of a condition: the order of a group's conditions."""
    record = run.conditions[condition]
    return run.target.placements.index(record.placement), record.batch_size


def rank(pairs: Tally) -> tuple[IntArray, IntArray]:
    """(variants, counts) over all the pairs: most common first, then first seen first."""
    variants, inverse = np.unique(pairs.variant, return_inverse=True)
    counts = np.bincount(inverse, weights=pairs.count, minlength=len(variants)).astype(np.int64)
    first = np.full(len(variants), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, pairs.first_row)
    order = np.lexsort((first, -counts))
    return variants[order], counts[order]


def variant_counts(
    run: Run,
    pairs: Tally,
    references: Collection[int],
    first_divergence: Mapping[int, int | None],
) -> tuple[VariantCount, ...]:
    """The variants of `pairs`, most common first.

    `references` are the indices of the references among them; `first_divergence` has a position
    for each index.
    """
    variants, counts = rank(pairs)
    sizes, seeds = _seen_under(run, pairs)
    total = int(counts.sum())
    return tuple(
        VariantCount(
            rank=position,
            variant=run.variants[index],
            count=count,
            share=count / total,
            is_reference=index in references,
            first_divergence=first_divergence[index],
            batch_sizes=tuple(sorted(sizes[index])),
            seeds=tuple(seed for seed in run.samples if seed in seeds[index]),
        )
        for position, (index, count) in enumerate(
            zip(variants.tolist(), counts.tolist(), strict=True), start=1
        )
    )


def _seen_under(run: Run, pairs: Tally) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """Batch sizes and seeds under which each variant was seen."""
    sizes: defaultdict[int, set[int]] = defaultdict(set)
    seeds: defaultdict[int, set[int]] = defaultdict(set)
    for condition, variant in zip(pairs.condition.tolist(), pairs.variant.tolist(), strict=True):
        sizes[variant].add(run.conditions[condition].batch_size)
        seeds[variant].add(run.sample_of(run.conditions[condition]))
    return sizes, seeds
