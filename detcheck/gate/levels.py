"""The unit of one answer at each level: log-probabilities, tokens, text or parsed answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcheck.analysis.answers import before
from detcheck.analysis.results import Analysis, Group, SeedSplit
from detcheck.analysis.variants import IntArray, rows_by_condition
from detcheck.evidence import Precision
from detcheck.gate.options import ANSWER, BITS, TEXT, GateOptions
from detcheck.parsers import AnswerParser, answer_parser
from detcheck.rundir import Run


@dataclass(frozen=True, slots=True)
class AtLevel:
    """The completions of one group, counted by the unit of a level."""

    level: str
    """`bits`, `tokens`, `text` or `answer`."""
    distinct: int
    """Different answers at this level; of several seeds, those of the seed that has most."""
    differing: int
    """Completions that differ from the reference of their seed."""
    unknown: int
    """Completions that cannot be compared at this level: without log-probabilities, or without an
    answer that the parser found."""
    batch_sizes: tuple[int, ...]
    """Batch sizes at which completions differ from the reference, smallest first."""
    labels: tuple[tuple[str | None, int], ...]
    """At the level answer: each parsed answer and its completions, most common first."""
    rounding: str
    """At the level bits: `to 4 decimals` if a server rounds its log-probabilities; else empty."""


@dataclass(frozen=True, slots=True)
class _Variants:
    """The units by which the variants of a run are compared."""

    labels: tuple[str | None, ...]
    """Its text, or its parsed answer; None if the parser found none."""
    numbers: IntArray
    """Equal numbers are equal labels; (variants,)."""
    partial: npt.NDArray[np.bool_]
    """True if the log-probability of some token is missing; (variants,)."""


def count_at_level(
    analysis: Analysis, groups: Iterable[Group], options: GateOptions
) -> Mapping[tuple[int, str], AtLevel]:
    """The answers of each group, counted at the level it is judged by; by (prompt index, kernels).

    Answers are compared within a seed, with the first completion that has the tokens of the seed's
    reference. Without token ids, tokens are compared by their text.
    """
    run = analysis.run
    rows = rows_by_condition(run)
    conditions: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for index, record in enumerate(run.conditions):
        conditions[record.prompt_index, record.kernels].append(index)
    compared = _compared(run, options)
    counts = {}
    for group in groups:
        key = group.prompt_index, group.kernels
        ours = rows.of(conditions[key])
        ours = ours[run.completions.variant[ours] >= 0]
        counts[key] = _count(analysis, group, ours, options.level_of(group.kernels), compared)
    return counts


def _compared(run: Run, options: GateOptions) -> _Variants:
    variants = run.variants
    parse: AnswerParser = answer_parser(options.answer) if options.answer is not None else str
    items = run.experiment.items
    parsers = [before(parse, item.until) for item in items] if options.answer and items else []
    labels = tuple(
        (parsers[variant.prompt_index] if parsers else parse)(variant.text) for variant in variants
    )
    number: dict[str | None, int] = {}
    numbers = [number.setdefault(label, len(number)) for label in labels]
    partial = [
        variant.gaps is not None and bool(np.isnan(variant.gaps).any()) for variant in variants
    ]
    return _Variants(labels, np.array(numbers, dtype=np.int64), np.array(partial, dtype=bool))


def _count(
    analysis: Analysis, group: Group, rows: IntArray, level: str, compared: _Variants
) -> AtLevel:
    """Count the completions in `rows`, which are those of `group` that came back."""
    run, table = analysis.run, analysis.run.completions
    seed_of = np.array([run.sample_of(record) for record in run.conditions])
    keys = _keys(analysis, rows, level, compared)
    differs = np.zeros(len(rows), dtype=bool)
    distinct = 0
    for split in group.by_seed:
        ours = np.flatnonzero(seed_of[table.condition[rows]] == split.seed)
        distinct = max(distinct, len(np.unique(keys[ours])))
        first = _first_with_reference(analysis, split, table.variant[rows[ours]])
        if first is not None:
            differs[ours] = keys[ours] != keys[ours[first]]
    conditions = np.unique(table.condition[rows[differs]]).tolist()
    variants = table.variant[rows]
    labels = Counter(compared.labels[index] for index in variants.tolist())
    without_logprobs = (table.digest[rows] < 0) | compared.partial[variants]
    unknown = {BITS: int(without_logprobs.sum()), ANSWER: labels[None]}
    return AtLevel(
        level=level,
        distinct=distinct,
        differing=int(differs.sum()),
        unknown=unknown.get(level, 0),
        batch_sizes=tuple(sorted({run.conditions[index].batch_size for index in conditions})),
        labels=tuple(labels.most_common()) if level == ANSWER else (),
        rounding=_rounding(analysis.run, group) if level == BITS else "",
    )


def _rounding(run: Run, group: Group) -> str:
    """How the log-probabilities of a group are rounded; empty if they are not.

    An engine on this machine gives the numbers that it has computed.
    """
    if run.traits.computes_here:
        return ""
    finest: Precision | None = None
    for record in run.conditions:
        found = record.logprob_precision
        if found and (record.prompt_index, record.kernels) == (group.prompt_index, group.kernels):
            finest = found if finest is None else finest.joined(found)
    return "" if finest is None else finest.rounding


def _keys(analysis: Analysis, rows: IntArray, level: str, compared: _Variants) -> IntArray:
    """A number for the answer of each row; equal numbers are equal answers at `level`."""
    table = analysis.run.completions
    variants = table.variant[rows].astype(np.int64)
    if level == BITS:
        return variants << 32 | _known_digests(variants, table.digest[rows]) + 1
    return compared.numbers[variants] if level in (TEXT, ANSWER) else variants


def _known_digests(variants: IntArray, digests: npt.NDArray[np.int32]) -> IntArray:
    """The digests; of a completion without one, that of another completion with its tokens.

    So a completion that cannot be compared is no difference by itself.
    """
    settled = digests.astype(np.int64)
    missing = settled < 0
    for variant in np.unique(variants[missing]).tolist():
        same = variants == variant
        known = settled[same & ~missing]
        settled[same & missing] = known[0] if len(known) else -1
    return settled


def _first_with_reference(
    analysis: Analysis, split: SeedSplit, variants: npt.NDArray[np.int32]
) -> int | None:
    """Index of the first completion with the reference's tokens; None if there is none."""
    if split.reference is None:
        return None
    fingerprint = split.reference.variant.fingerprint
    for index in np.unique(variants).tolist():
        if analysis.run.variants[index].fingerprint == fingerprint:
            return int(np.flatnonzero(variants == index)[0])
    return None
