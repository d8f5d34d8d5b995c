"""Wanted samples and unwanted answers: every seed of a prompt under every load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from detcheck.analysis.results import Group, SeedSplit
from detcheck.report.card import samples_sentence

MAX_SEEDS = 64
"""Seeds of a prompt and kernels setting that are shown."""


@dataclass(frozen=True, slots=True)
class SeedCell:
    """One seed at one batch size."""

    distinct: int
    """Different answers; 0 if none came back."""
    completions: int
    differ: int
    """Completions whose answer is not the reference of the seed."""


@dataclass(frozen=True, slots=True)
class SeedRow:
    """One seed under one kernels setting."""

    kernels: str
    seed: int
    cells: tuple[SeedCell, ...]
    """One for each batch size of the view."""
    distinct: int
    """Different answers over all loads: those beyond the first come from the system."""
    first_divergence: int | None
    """Earliest position at which an answer leaves the reference of the seed."""
    sample: str
    """The text of that reference, from the word on at which the samples begin to differ."""


@dataclass(frozen=True, slots=True)
class SeedsView:
    """All seeds of one prompt under all its kernels settings."""

    batch_sizes: tuple[int, ...]
    rows: tuple[SeedRow, ...]
    """Kernels by kernels, in the order of the seeds."""
    sentences: tuple[tuple[str, str], ...]
    """(kernels, the number of samples asked for and the sources of the answers)."""
    hidden: int
    """Seeds of each kernels setting that are not in `rows`."""
    sample: str = "seed"
    """The word for a wanted sample: `seed` or `choice`."""


def seeds_view(groups: Sequence[Group]) -> SeedsView | None:
    """The seeds of one prompt, from its groups; None if there is only one seed."""
    num_seeds = max(len(group.by_seed) for group in groups)
    if num_seeds <= 1:
        return None
    start = _shared_start(groups)
    sizes = tuple(sorted({row.batch_size for group in groups for row in group.by_condition}))
    return SeedsView(
        batch_sizes=sizes,
        rows=tuple(row for group in groups for row in _rows(group, sizes, start)),
        sentences=tuple((group.kernels, samples_sentence(group)) for group in groups),
        hidden=max(0, num_seeds - MAX_SEEDS),
        sample=groups[0].sample,
    )


def _shared_start(groups: Sequence[Group]) -> int:
    """Characters, in whole words, with which the references of all seeds begin."""
    references = [split.reference for group in groups for split in group.by_seed]
    texts = [one.variant.text for one in references if one is not None]
    # What the first and the last in alphabetical order share, all share.
    pairs = zip(min(texts, default=""), max(texts, default=""), strict=False)
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared.rfind(" ") + 1


def _rows(group: Group, batch_sizes: Sequence[int], start: int) -> Iterator[SeedRow]:
    for split in group.by_seed[:MAX_SEEDS]:
        reference = split.reference
        yield SeedRow(
            kernels=group.kernels,
            seed=split.seed,
            cells=tuple(_cell(group, split, size) for size in batch_sizes),
            distinct=split.distinct,
            first_divergence=min((one.position for one in split.divergences), default=None),
            sample="" if reference is None else reference.variant.text[start:],
        )


def _cell(group: Group, split: SeedSplit, batch_size: int) -> SeedCell:
    """One seed at one batch size, over all places."""
    rows = [
        row for row in group.by_condition if row.seed == split.seed and row.batch_size == batch_size
    ]
    return SeedCell(
        distinct=max((row.distinct for row in rows), default=0),
        completions=sum(row.completions for row in rows),
        differ=sum(row.differ_from_reference for row in rows),
    )
