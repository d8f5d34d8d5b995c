"""Does the *answer* change with the load? Completions parsed, compared and scored.

For each kernels setting, over its prompts (the items of an evaluation):

- TARr@N and TARa@N: the share of items whose N raw or parsed answers are all equal. After Atil et
  al., "Non-Determinism of 'Deterministic' LLM Settings" (2024).
- Answer flips: the items with more than one parsed answer, and their share with an exact
  (Clopper-Pearson) interval.
- Accuracy at each load, its best, worst and standard deviation (Std@Acc), beside the binomial
  standard error of the set. After Yuan et al., "Give Me FP32 or Give Me Death?" (2025).
- Div_Index: the first position at which two responses differ, averaged over the items that diverge.

A completion whose answer could not be parsed counts as an answer of its own: an item of which some
completions parse and others do not has flipped. With several seeds, answers are compared within a
seed: another seed is another wanted sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Analysis, Group
from detcheck.analysis.variants import Tally, tally
from detcheck.parsers import AnswerParser

CONFIDENCE = 0.95
MAX_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class AnswerCount:
    """One parsed answer to an item."""

    answer: str | None
    """None: the parser found none."""
    completions: int
    batch_sizes: tuple[int, ...]
    """Batch sizes under which it came back, smallest first."""
    example: str
    """The text of the first completion that gave it."""


@dataclass(frozen=True, slots=True)
class AnsweredItem:
    """One prompt under one kernels setting, its completions parsed."""

    prompt_index: int
    prompt: str
    expected: str | None
    """The right answer, parsed as well; None if it is not known."""
    answers: tuple[AnswerCount, ...]
    """Most common first; empty if no completion came back."""
    distinct_within_seed: int
    """Most parsed answers to one seed; 0 if no completion came back."""
    raw_distinct_within_seed: int
    """Most distinct completions of one seed, unparsed."""
    div_index: int | None
    """First position at which two completions of a seed differ; None if all are equal."""
    correct_share: Mapping[int, float]
    """Share of right answers by batch size, of those that answered; empty without `expected`."""

    @property
    def flips(self) -> bool:
        """Whether the parsed answer to one seed changed."""
        return self.distinct_within_seed > 1


@dataclass(frozen=True, slots=True)
class LoadAccuracy:
    """The accuracy at one batch size: mean over items of the share of right answers."""

    batch_size: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class AnswerStability:
    """How far the load changes the answers under one kernels setting. Shares are of 1."""

    kernels: str
    items: tuple[AnsweredItem, ...]
    """Items with completions, in the order of the prompts."""
    completions: int
    unparsed: int
    """Completions that the parser found no answer in."""
    unparsed_examples: tuple[str, ...]
    """Up to MAX_EXAMPLES texts of these."""
    raw_agreement: float | None
    """TARr@N; None if no completion came back."""
    parsed_agreement: float | None
    """TARa@N; None if no completion came back."""
    flip_interval: tuple[float, float] | None
    """Exact 95 % interval of the share of items whose answer changes; None without items."""
    by_load: tuple[LoadAccuracy, ...]
    """Smallest batch first, over the items that answered at every load; empty if no right answers
    are known."""
    standard_error: float | None
    """Binomial standard error of the mean accuracy, from the number of items alone."""
    div_index: float | None
    """Mean Div_Index of the items that diverge; None if none does."""

    @property
    def flipped(self) -> tuple[AnsweredItem, ...]:
        """The items whose answer changed."""
        return tuple(item for item in self.items if item.flips)

    @property
    def flip_share(self) -> float | None:
        """Share of items whose answer changed; None without items."""
        return len(self.flipped) / len(self.items) if self.items else None

    @property
    def best(self) -> float | None:
        """Highest accuracy of a load; None if no right answers are known."""
        return max((load.accuracy for load in self.by_load), default=None)

    @property
    def worst(self) -> float | None:
        """Lowest accuracy of a load; None if no right answers are known."""
        return min((load.accuracy for load in self.by_load), default=None)

    @property
    def spread(self) -> float | None:
        """Best minus worst accuracy: what the load alone moves; None without right answers."""
        if self.best is None or self.worst is None:
            return None
        return self.best - self.worst

    @property
    def accuracy_std(self) -> float | None:
        """Std@Acc: standard deviation of the accuracy over loads; None with fewer than two."""
        if len(self.by_load) < 2:
            return None
        mean = sum(load.accuracy for load in self.by_load) / len(self.by_load)
        squares = sum((load.accuracy - mean) ** 2 for load in self.by_load)
        return math.sqrt(squares / (len(self.by_load) - 1))

    @property
    def sentence(self) -> str:
        """The finding in words: `the load alone moves this score by ±1.3 points; …`."""
        if self.spread is None:
            flipped, total = len(self.flipped), len(self.items)
            return f"the answer to {flipped:,} of {total:,} items changes with the load"
        half = 100 * self.spread / 2
        if half == 0:
            return "the load does not move this score"
        return (
            f"the load alone moves this score by ±{half:.3g} points; "
            "a difference below that is noise"
        )


def answer_stability(
    analysis: Analysis, parse: AnswerParser, expected: Mapping[int, str] | None = None
) -> tuple[AnswerStability, ...]:
    """How far the load changes the parsed answers of a run, for each kernels setting.

    `expected` holds the right answer by prompt index, for the prompts for which it is known; it is
    parsed like a completion, and taken as it is if the parser finds nothing in it.
    """
    pairs = tally(analysis.run)
    right = {index: parse(answer) or answer.strip() for index, answer in (expected or {}).items()}
    by_kernels: dict[str, list[Group]] = {}
    for group in analysis.groups:
        by_kernels.setdefault(group.kernels, []).append(group)
    return tuple(
        _stability(
            kernels,
            [
                _item(analysis, group, pairs, parse, right.get(group.prompt_index))
                for group in groups
                if group.completions
            ],
        )
        for kernels, groups in by_kernels.items()
    )


def _item(
    analysis: Analysis, group: Group, pairs: Tally, parse: AnswerParser, expected: str | None
) -> AnsweredItem:
    """Parse the completions of one group."""
    parsed = {
        counted.variant.fingerprint: parse(counted.variant.text) for counted in group.variants
    }
    by_size: dict[int, Counter[str | None]] = {}
    for batch_size, fingerprint, count in _counts(analysis, group, pairs):
        by_size.setdefault(batch_size, Counter())[parsed[fingerprint]] += count
    of_seeds = [{parsed[v.variant.fingerprint] for v in split.variants} for split in group.by_seed]
    return AnsweredItem(
        prompt_index=group.prompt_index,
        prompt=group.prompt,
        expected=expected,
        answers=_answer_counts(group, parsed, by_size),
        distinct_within_seed=max(map(len, of_seeds), default=0),
        raw_distinct_within_seed=group.distinct_within_seed,
        div_index=group.first_divergence,
        correct_share={}
        if expected is None
        else {size: by_size[size][expected] / by_size[size].total() for size in sorted(by_size)},
    )


def _counts(analysis: Analysis, group: Group, pairs: Tally) -> Iterator[tuple[int, str, int]]:
    """(batch size, fingerprint, completions) of a group."""
    run = analysis.run
    conditions = [
        index
        for index, record in enumerate(run.conditions)
        if (record.prompt_index, record.kernels) == (group.prompt_index, group.kernels)
    ]
    here = pairs.of(conditions)
    for condition, variant, count in zip(
        here.condition.tolist(), here.variant.tolist(), here.count.tolist(), strict=True
    ):
        yield run.conditions[condition].batch_size, run.variants[variant].fingerprint, count


def _answer_counts(
    group: Group,
    parsed: Mapping[str, str | None],
    by_size: Mapping[int, Counter[str | None]],
) -> tuple[AnswerCount, ...]:
    total: Counter[str | None] = Counter()
    for counts in by_size.values():
        total.update(counts)
    examples: dict[str | None, str] = {}
    for counted in group.variants:
        examples.setdefault(parsed[counted.variant.fingerprint], counted.variant.text)
    return tuple(
        AnswerCount(
            answer,
            completions,
            tuple(sorted(size for size, counts in by_size.items() if counts[answer])),
            examples[answer],
        )
        for answer, completions in total.most_common()
    )


def _stability(kernels: str, items: Sequence[AnsweredItem]) -> AnswerStability:
    flipped = sum(item.flips for item in items)
    missing = [count for item in items for count in item.answers if count.answer is None]
    diverging = [item.div_index for item in items if item.div_index is not None]
    by_load, scored = _by_load(items)
    return AnswerStability(
        kernels=kernels,
        items=tuple(items),
        completions=sum(count.completions for item in items for count in item.answers),
        unparsed=sum(count.completions for count in missing),
        unparsed_examples=tuple(count.example for count in missing[:MAX_EXAMPLES]),
        raw_agreement=_share(sum(item.raw_distinct_within_seed == 1 for item in items), len(items)),
        parsed_agreement=_share(len(items) - flipped, len(items)),
        flip_interval=exact_interval(flipped, len(items)) if items else None,
        by_load=by_load,
        standard_error=_standard_error(by_load, scored),
        div_index=sum(diverging) / len(diverging) if diverging else None,
    )


def _by_load(items: Sequence[AnsweredItem]) -> tuple[tuple[LoadAccuracy, ...], int]:
    """Accuracy at each batch size, and the number of items that it is the mean of.

    Only items with a right answer that answered at every batch size count: a difference between
    loads must not come from other items.
    """
    scored = [item for item in items if item.correct_share]
    sizes = sorted({size for item in scored for size in item.correct_share})
    whole = [item for item in scored if len(item.correct_share) == len(sizes)]
    if not whole:
        return (), 0
    accuracies = (sum(item.correct_share[size] for item in whole) / len(whole) for size in sizes)
    return tuple(map(LoadAccuracy, sizes, accuracies)), len(whole)


def _standard_error(by_load: Sequence[LoadAccuracy], items: int) -> float | None:
    if not by_load:
        return None
    mean = sum(load.accuracy for load in by_load) / len(by_load)
    return math.sqrt(max(0.0, mean * (1 - mean)) / items)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def exact_interval(hits: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact (Clopper-Pearson, two-sided) interval of a rate, from `hits` in at least one trial."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, trials - hits + 1, tail))
    high = 1.0 if hits == trials else float(betaincinv(hits + 1, trials - hits, 1 - tail))
    return low, high
