"""Analyse a run: one group per (prompt, kernels), then what spans groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from detcheck.analysis.batches import (
    Counted,
    batch_size_row,
    evidence,
    prefix_cache,
    relative_cost,
    tokens_per_second,
)
from detcheck.analysis.load_records import sum_known
from detcheck.analysis.noise import Noise, NoiseSample, noise_sample, pooled
from detcheck.analysis.results import (
    FLIP_KINDS,
    Analysis,
    BatchSizeRow,
    Branching,
    Group,
)
from detcheck.analysis.seeds import SeedCells, group_variants, seed_cells, seed_split, tree_of
from detcheck.analysis.statistics import agreement, group_statistics, total_agreement_rate
from detcheck.analysis.variants import IntArray, by_one_identity, place_and_size
from detcheck.kernels.settings import STOCK
from detcheck.rundir import Run


def analyse(run: Run) -> Analysis:
    """Analyse a loaded run, finished or not. Reads nothing but `run`."""
    run = by_one_identity(_without_unrelated_gaps(run))
    counted = Counted.of(run)
    cells = _cells(run, counted)
    noise = _noise(run, cells, counted)
    groups = tuple(
        _group(run, cell, counted, its_noise) for cell, its_noise in zip(cells, noise, strict=True)
    )
    return Analysis(
        run=run,
        groups=groups,
        agreement=agreement(run, counted.pairs),
        total_agreement_rate=total_agreement_rate(groups),
    )


def _without_unrelated_gaps(run: Run) -> Run:
    """The run without the gaps of its variants, if the tokens were not chosen by those scores.

    Above temperature 0 a server draws each token, but its log-probabilities are those from before
    the draw: their gap explains no flip.
    """
    if run.experiment.temperature == 0 or run.traits.computes_here:
        return run
    variants = tuple(replace(variant, gaps=None) for variant in run.variants)
    return replace(run, variants=variants)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One prompt under one kernels setting."""

    prompt_index: int
    kernels: str
    conditions: Sequence[int]
    """Indices of its conditions, ascending."""
    seeds: tuple[SeedCells, ...]

    @property
    def references(self) -> Mapping[int, int | None]:
        """Index of the reference variant of each seed; None if nothing came back."""
        return {cells.seed: cells.reference for cells in self.seeds}


def _cells(run: Run, counted: Counted) -> list[_Cell]:
    """In the order of the groups: prompts in order, stock before the other kernels."""
    conditions: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for index, record in enumerate(run.conditions):
        conditions[record.prompt_index, record.kernels].append(index)
    return [
        _Cell(prompt_index, kernels, indices, seed_cells(run, indices, counted))
        for prompt_index in range(len(run.experiment.prompts))
        for kernels in sorted(run.experiment.kernels, key=lambda kernels: kernels != STOCK)
        if (indices := conditions[prompt_index, kernels])
    ]


def _noise(run: Run, cells: Sequence[_Cell], counted: Counted) -> list[Noise]:
    """The noise of each cell: of its kernels setting, over all prompts, seeds and conditions.

    No change at all counts only for the prompts at which it was seen: that other answers did not
    move is no sign that the gaps of this prompt cannot.
    """
    samples = [
        [noise_sample(run, counted.rows.of(seed.conditions)) for seed in cell.seeds]
        for cell in cells
    ]
    by_kernels: defaultdict[str, list[NoiseSample]] = defaultdict(list)
    for cell, own in zip(cells, samples, strict=True):
        by_kernels[cell.kernels] += own
    of_kernels = {kernels: pooled(listed) for kernels, listed in by_kernels.items()}
    return [
        pooled(own) if of_kernels[cell.kernels].gap == 0.0 else of_kernels[cell.kernels]
        for cell, own in zip(cells, samples, strict=True)
    ]


def _group(run: Run, cell: _Cell, counted: Counted, noise: Noise) -> Group:
    """Everything about one prompt and kernels setting."""
    records = [run.conditions[index] for index in cell.conditions]
    pairs = counted.pairs.of(cell.conditions)
    splits = tuple(seed_split(run, cells, counted, noise.gap) for cells in cell.seeds)
    variants = group_variants(run, pairs, cell.seeds, splits)
    branchings = tuple(branching for split in splits for branching in split.branchings)
    return Group(
        prompt_index=cell.prompt_index,
        prompt=run.experiment.prompts[cell.prompt_index],
        kernels=cell.kernels,
        asked=sum(record.due for record in records),
        completions=int(pairs.count.sum()),
        failed=sum(record.failed for record in records),
        variants=variants,
        divergences=tuple(divergence for split in splits for divergence in split.divergences),
        branchings=branchings,
        flips=_by_kind(branchings),
        noise=noise.gap,
        noise_positions=noise.positions,
        logprobs_differ=sum_known(
            _logprobs_differ(run, counted.rows.of(seed.conditions), seed.reference)
            for seed in cell.seeds
        ),
        tree=tree_of(variants).root() if variants else None,
        by_batch_size=_by_batch_size(run, cell, counted),
        by_condition=_rows(run, cell, counted, ([index] for index in cell.conditions)),
        by_seed=splits,
        sample="choice" if run.by_choice else "seed",
        statistics=group_statistics(run, cell.seeds, counted.rows),
        evidence=evidence(
            records,
            open_loop=run.traits.open_loop,
            choices=run.traits.choices,
            traffic=run.experiment.traffic,
        ),
        tokens_per_second=tokens_per_second(records),
        relative_cost=relative_cost(records, counted.stock),
        prefix_cache=prefix_cache(run, cell.conditions, counted.rows),
    )


def _by_kind(branchings: Sequence[Branching]) -> dict[str, int]:
    kinds = Counter(branching.flip.kind for branching in branchings)
    return {kind: kinds[kind] for kind in FLIP_KINDS}


def _by_batch_size(run: Run, cell: _Cell, counted: Counted) -> tuple[BatchSizeRow, ...]:
    """One row per place and batch size, over all seeds."""
    alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index in cell.conditions:
        alike[place_and_size(run, index)].append(index)
    return _rows(run, cell, counted, alike.values())


def _rows(
    run: Run, cell: _Cell, counted: Counted, alike: Iterable[Sequence[int]]
) -> tuple[BatchSizeRow, ...]:
    """One row for each set of conditions, place by place, smallest batch first."""
    ordered = sorted(alike, key=lambda indices: place_and_size(run, indices[0]))
    return tuple(batch_size_row(run, indices, counted, cell.references) for indices in ordered)


def _logprobs_differ(run: Run, rows: IntArray, reference: int | None) -> int | None:
    """Completions with the reference's tokens whose digest is not that of the first of them.

    None if there are no digests.
    """
    table = run.completions
    same = rows[(table.variant[rows] == reference) & (table.digest[rows] >= 0)]
    if reference is None or not len(same):
        return None
    return int((table.digest[same] != table.digest[same[0]]).sum())
