"""Analyse a run: one group per (prompt, kernels), then what spans groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detcheck.analysis.batches import (
    StockRecords,
    batch_size_row,
    evidence,
    prefix_cache,
    relative_cost,
    stock_records,
    tokens_per_second,
)
from detcheck.analysis.divergence import comparable, divergences, first_difference, units
from detcheck.analysis.noise import Noise, noise_sample, pooled
from detcheck.analysis.results import (
    FLIP_KINDS,
    Analysis,
    BatchSizeRow,
    Branching,
    Group,
    VariantCount,
)
from detcheck.analysis.statistics import agreement, group_statistics, total_agreement_rate
from detcheck.analysis.tree import PrefixTree
from detcheck.analysis.variants import (
    IntArray,
    Rows,
    Tally,
    by_one_identity,
    pick_reference,
    place_and_size,
    rank,
    rows_by_condition,
    tally,
    variant_counts,
)
from detcheck.kernels.settings import STOCK
from detcheck.rundir import Run


def analyse(run: Run) -> Analysis:
    """Analyse a loaded run, finished or not. Reads nothing but `run`."""
    run = by_one_identity(run)
    counted = _Counted(tally(run), rows_by_condition(run), stock_records(run))
    cells = _cells(run)
    noise = _noise(run, cells, counted.rows)
    groups = tuple(_group(run, cell, counted, noise[cell.kernels]) for cell in cells)
    return Analysis(
        run=run,
        groups=groups,
        agreement=agreement(run, counted.pairs),
        total_agreement_rate=total_agreement_rate(groups),
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """A run's completion table, gone through once for all groups."""

    pairs: Tally
    rows: Rows
    stock: StockRecords


@dataclass(frozen=True, slots=True)
class _Cell:
    """One prompt under one kernels setting."""

    prompt_index: int
    kernels: str
    conditions: list[int]
    """Indices of its conditions, ascending."""


def _cells(run: Run) -> list[_Cell]:
    """In the order of the groups: prompts in order, stock before the other kernels."""
    conditions: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for index, record in enumerate(run.conditions):
        conditions[record.prompt_index, record.kernels].append(index)
    return [
        _Cell(prompt_index, kernels, conditions[prompt_index, kernels])
        for prompt_index in range(len(run.experiment.prompts))
        for kernels in sorted(run.experiment.kernels, key=lambda kernels: kernels != STOCK)
    ]


def _noise(run: Run, cells: Sequence[_Cell], rows: Rows) -> Mapping[str, Noise]:
    """The noise of each kernels setting, over all its prompts and conditions."""
    return {
        kernels: pooled(
            noise_sample(run, rows.of(cell.conditions)) for cell in cells if cell.kernels == kernels
        )
        for kernels in run.experiment.kernels
    }


def _group(run: Run, cell: _Cell, counted: _Counted, noise: Noise) -> Group:
    """Everything about one prompt and kernels setting."""
    records = [run.conditions[index] for index in cell.conditions]
    pairs = counted.pairs.of(cell.conditions)
    reference = pick_reference(run, pairs)
    variants = () if reference is None else _variants(run, pairs, reference)
    tree = _tree(variants)
    branchings = () if tree is None else tree.branchings(noise.gap)
    return Group(
        prompt_index=cell.prompt_index,
        prompt=run.experiment.prompts[cell.prompt_index],
        kernels=cell.kernels,
        asked=sum(record.asked for record in records),
        completions=int(pairs.count.sum()),
        failed=sum(record.failed for record in records),
        variants=variants,
        divergences=divergences(variants, noise.gap) if variants else (),
        branchings=branchings,
        flips=_by_kind(branchings),
        noise=noise.gap,
        noise_positions=noise.positions,
        logprobs_differ=_logprobs_differ(run, counted.rows.of(cell.conditions), reference),
        tree=None if tree is None else tree.root(),
        by_batch_size=_by_batch_size(run, cell.conditions, pairs, counted, reference),
        statistics=group_statistics(run, cell.conditions, counted.rows, reference),
        evidence=evidence(records, open_loop=run.traits.open_loop),
        tokens_per_second=tokens_per_second(records),
        relative_cost=relative_cost(records, counted.stock),
        prefix_cache=prefix_cache(run, cell.conditions, counted.rows),
    )


def _variants(run: Run, pairs: Tally, reference: int) -> tuple[VariantCount, ...]:
    """The variants of a group, most common first, with where each leaves the reference."""
    indices = rank(pairs)[0].tolist()
    compared = comparable([run.variants[index] for index in indices])
    base = units(compared[indices.index(reference)])
    positions = {
        index: first_difference(base, units(variant))
        for index, variant in zip(indices, compared, strict=True)
    }
    return variant_counts(run, pairs, reference, positions)


def _tree(variants: Sequence[VariantCount]) -> PrefixTree | None:
    if not variants:
        return None
    return PrefixTree([v.variant for v in variants], [v.count for v in variants])


def _by_kind(branchings: Sequence[Branching]) -> dict[str, int]:
    kinds = Counter(branching.flip.kind for branching in branchings)
    return {kind: kinds[kind] for kind in FLIP_KINDS}


def _by_batch_size(
    run: Run, conditions: Sequence[int], pairs: Tally, counted: _Counted, reference: int | None
) -> tuple[BatchSizeRow, ...]:
    """One row a condition, place by place, smallest batch first."""
    ordered = sorted(conditions, key=lambda index: place_and_size(run, index))
    return tuple(
        batch_size_row(
            run,
            index,
            pairs,
            counted.rows.of([index]),
            reference=reference,
            stock=counted.stock,
        )
        for index in ordered
    )


def _logprobs_differ(run: Run, rows: IntArray, reference: int | None) -> int | None:
    """Completions with the reference's tokens whose digest is not that of the first of them.

    None if there are no digests.
    """
    table = run.completions
    same = rows[(table.variant[rows] == reference) & (table.digest[rows] >= 0)]
    if reference is None or not len(same):
        return None
    return int((table.digest[same] != table.digest[same[0]]).sum())
