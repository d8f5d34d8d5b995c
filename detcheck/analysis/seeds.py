"""The completions of one seed: its reference, and where its other variants leave it.

A seed is a *wanted* sample. Answers to different seeds may differ; within a seed, every answer but
one was added by the system. So references, divergences and branchings are within a seed. If each
request asks for several choices above temperature 0, the choices are the wanted samples, and the
number of the choice stands for the seed; see `Run.samples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.batches import Counted
from detcheck.analysis.divergence import comparable, divergences, first_difference, units
from detcheck.analysis.results import SeedSplit, VariantCount
from detcheck.analysis.tree import PrefixTree
from detcheck.analysis.variants import Tally, pick_reference, rank, variant_counts
from detcheck.rundir import Run


@dataclass(frozen=True, slots=True)
class SeedCells:
    """The conditions of one prompt, kernels setting and seed."""

    seed: int
    conditions: Sequence[int]
    """Ascending."""
    reference: int | None
    """Index of the reference variant; None if nothing came back."""


def seed_cells(run: Run, conditions: Sequence[int], counted: Counted) -> tuple[SeedCells, ...]:
    """The conditions of a group seed by seed, in the order of the experiment."""
    by_seed: dict[int, list[int]] = {seed: [] for seed in run.samples}
    for index in conditions:
        by_seed[run.sample_of(run.conditions[index])].append(index)
    return tuple(
        SeedCells(seed, indices, pick_reference(run, counted.pairs.of(indices)))
        for seed, indices in by_seed.items()
    )


def seed_split(run: Run, cells: SeedCells, counted: Counted, noise: float | None) -> SeedSplit:
    """Analyse one seed; `noise` is in nats, None if it was not measured."""
    pairs = counted.pairs.of(cells.conditions)
    if cells.reference is None:
        return SeedSplit(cells.seed, 0, (), (), ())
    variants = _variants(run, pairs, cells.reference)
    return SeedSplit(
        seed=cells.seed,
        completions=int(pairs.count.sum()),
        variants=variants,
        divergences=divergences(variants, noise, cells.seed),
        branchings=tree_of(variants).branchings(noise, cells.seed),
    )


def group_variants(
    run: Run, pairs: Tally, cells: Sequence[SeedCells], splits: Sequence[SeedSplit]
) -> tuple[VariantCount, ...]:
    """The variants of all seeds together, most common first."""
    if len(splits) == 1:
        return splits[0].variants
    references = {cell.reference for cell in cells if cell.reference is not None}
    earliest: dict[str, int] = {}
    for divergence in (divergence for split in splits for divergence in split.divergences):
        name = divergence.variant.fingerprint
        earliest[name] = min(divergence.position, earliest.get(name, divergence.position))
    positions = {
        index: None if index in references else earliest.get(run.variants[index].fingerprint)
        for index in rank(pairs)[0].tolist()
    }
    return variant_counts(run, pairs, references, positions)


def tree_of(variants: Sequence[VariantCount]) -> PrefixTree:
    """The prefix tree of `variants`, of which there is at least one; most common first."""
    return PrefixTree([v.variant for v in variants], [v.count for v in variants])


def _variants(run: Run, pairs: Tally, reference: int) -> tuple[VariantCount, ...]:
    """The variants of one seed, with the position at which each leaves the reference."""
    indices = rank(pairs)[0].tolist()
    compared = comparable([run.variants[index] for index in indices])
    base = units(compared[indices.index(reference)])
    positions = {
        index: first_difference(base, units(variant))
        for index, variant in zip(indices, compared, strict=True)
    }
    return variant_counts(run, pairs, {reference}, positions)
