"""What a run means: one group per (prompt, kernels), then what spans groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
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
from detcheck.analysis.divergence import comparable, describe, first_difference, units
from detcheck.analysis.flips import group_noise
from detcheck.analysis.results import (
    FLIP_KINDS,
    Analysis,
    BatchSizeRow,
    Divergence,
    Group,
    VariantCount,
)
from detcheck.analysis.statistics import agreement, group_statistics, total_agreement_rate
from detcheck.analysis.tree import prefix_tree
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
from detcheck.endpoints import poisson_rate
from detcheck.experiment import STOCK
from detcheck.rundir import Run


def analyse(run: Run) -> Analysis:
    """Analyse a loaded run, finished or not. Reads nothing but `run`."""
    run = by_one_identity(run)
    counted = _Counted(tally(run), rows_by_condition(run), stock_records(run))
    conditions: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for index, record in enumerate(run.conditions):
        conditions[record.prompt_index, record.kernels].append(index)
    groups = tuple(
        _group(run, prompt_index, kernels, conditions[prompt_index, kernels], counted)
        for prompt_index in range(len(run.experiment.prompts))
        for kernels in sorted(run.experiment.kernels, key=lambda kernels: kernels != STOCK)
    )
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


def _group(
    run: Run, prompt_index: int, kernels: str, conditions: Sequence[int], counted: _Counted
) -> Group:
    """Everything about one prompt and kernels setting; `conditions` are theirs, ascending."""
    records = [run.conditions[index] for index in conditions]
    pairs = counted.pairs.of(conditions)
    reference = pick_reference(run, pairs)
    rows = counted.rows.of(conditions)
    noise = group_noise(run.completions.noise[rows])
    variants, divergences = _compare(run, pairs, reference, noise)
    kinds = Counter(divergence.flip.kind for divergence in divergences)
    return Group(
        prompt_index=prompt_index,
        prompt=run.experiment.prompts[prompt_index],
        kernels=kernels,
        asked=sum(record.asked for record in records),
        completions=int(pairs.count.sum()),
        failed=sum(record.failed for record in records),
        variants=variants,
        divergences=divergences,
        flips={kind: kinds[kind] for kind in FLIP_KINDS},
        noise=noise,
        logprobs_differ=_logprobs_differ(run, rows, reference),
        tree=prefix_tree([v.variant for v in variants], [v.count for v in variants]),
        by_batch_size=_by_batch_size(run, conditions, pairs, counted, reference),
        statistics=group_statistics(run, conditions, counted.rows),
        evidence=evidence(records, open_loop=poisson_rate(run.experiment.arrivals) is not None),
        tokens_per_second=tokens_per_second(records),
        relative_cost=relative_cost(records, counted.stock),
        prefix_cache=prefix_cache(run, conditions, counted.rows),
    )


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


def _compare(
    run: Run, pairs: Tally, reference: int | None, noise: float | None
) -> tuple[tuple[VariantCount, ...], tuple[Divergence, ...]]:
    """The variants of a group, and where each leaves the reference; most common first."""
    if reference is None:
        return (), ()
    indices = rank(pairs)[0].tolist()
    compared = dict(
        zip(indices, comparable([run.variants[index] for index in indices]), strict=True)
    )
    base = units(compared[reference])
    parts = {index: first_difference(base, units(compared[index])) for index in indices}
    variants = variant_counts(run, pairs, reference, parts)
    divergences = tuple(
        describe(
            compared[reference],
            compared[index],
            stored=counted.variant,
            count=counted.count,
            position=position,
            noise=noise,
        )
        for index, counted in zip(indices, variants, strict=True)
        if (position := counted.first_divergence) is not None
    )
    return variants, divergences


def _logprobs_differ(run: Run, rows: IntArray, reference: int | None) -> int | None:
    """Completions with the reference's tokens whose digest is not that of the first of them.

    None where there are no digests.
    """
    table = run.completions
    same = rows[(table.variant[rows] == reference) & (table.digest[rows] >= 0)]
    if reference is None or not len(same):
        return None
    return int((table.digest[same] != table.digest[same[0]]).sum())
