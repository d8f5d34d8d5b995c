"""Does the *answer* change with the load? Completions parsed, compared and scored.

For each kernels setting, over its prompts (the items of an evaluation):

- TARr@N and TARa@N: the share of items whose N raw or parsed answers are all equal. After Atil et
  al., "Non-Determinism of 'Deterministic' LLM Settings" (2024).
- Answer flips: the items with more than one parsed answer, and their share with an exact
  (Clopper-Pearson) interval.
- Accuracy at each load, its best, worst and standard deviation (Std@Acc), beside the binomial
  standard error of the set; Div_Index, the first position at which two responses differ, averaged
  over the items that diverge; and Avg_Std@top1_prob, how far the best token's probability moves up
  to there. After Yuan et al., "Give Me FP32 or Give Me Death?" (2025).

No answer counts as one more answer of an item: an item of which some completions parse and others
do not has flipped. With several seeds, answers are compared within a seed: another seed is another
wanted sample.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detcheck.analysis.answer_records import (
    AnswerCount,
    AnsweredItem,
    AnswerStability,
    LoadAccuracy,
)
from detcheck.analysis.results import Analysis, Group
from detcheck.analysis.top1 import top1_stds
from detcheck.analysis.variants import Tally, tally
from detcheck.errors import UsageError
from detcheck.parsers import AnswerParser, answer_parser
from detcheck.prompts import PromptItem
from detcheck.rundir import Run

__all__ = [
    "AnswerCount",
    "AnswerStability",
    "AnsweredItem",
    "LoadAccuracy",
    "Response",
    "answer_stability",
    "answered_item",
    "exact_interval",
    "stability_if_parsed",
    "stability_of",
]

CONFIDENCE = 0.95
MAX_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Response:
    """Completions of one item that are equal, of one seed at one batch size."""

    batch_size: int
    text: str
    answer: str | None
    """What a parser takes from `text`."""
    identity: str = ""
    """Equal for equal completions, such as a fingerprint; the text if it is empty."""
    seed: int = 0
    completions: int = 1


def answer_stability(
    analysis: Analysis,
    parse: AnswerParser | str | None = None,
    expected: Mapping[int, str] | None = None,
) -> tuple[AnswerStability, ...]:
    """How far the load changes the parsed answers of a run, for each kernels setting.

    `parse` is a function, or the name of a parser; by default the one that the experiment names.
    `expected` holds the right answer by prompt index, for the prompts for which it is known; by
    default those of the experiment. It is parsed like a completion, and taken as it is if the
    parser finds nothing in it. Raises UsageError if there is no such parser, or none is named.
    """
    run = analysis.run
    name = run.experiment.answer if parse is None else parse
    if name is None:
        raise UsageError(
            "The run names no parser of answers: give one by `answer`, such as number."
        )
    parse = answer_parser(name) if isinstance(name, str) else name
    items = run.experiment.items or (PromptItem(),) * len(run.experiment.prompts)
    known = _known_answers(items) if expected is None else expected
    right = {index: parse(answer) or answer.strip() for index, answer in known.items()}
    pairs, deviations, conditions = tally(run), top1_stds(run), _conditions(run)
    by_kernels: dict[str, list[AnsweredItem]] = {}
    for group in analysis.groups:
        found = by_kernels.setdefault(group.kernels, [])
        if group.completions:
            item = items[group.prompt_index]
            here = pairs.of(conditions[group.prompt_index, group.kernels])
            responses = _responses(run, group, here, before(parse, item.until))
            found.append(
                answered_item(
                    (group.prompt_index, group.prompt, item.id),
                    responses,
                    right.get(group.prompt_index),
                    div_index=group.first_divergence,
                    top1_std=deviations.get((group.prompt_index, group.kernels)),
                )
            )
    return tuple(stability_of(kernels, found) for kernels, found in by_kernels.items())


def stability_if_parsed(
    analysis: Analysis, parse: AnswerParser | str | None = None
) -> tuple[AnswerStability, ...]:
    """As `answer_stability`, but empty if neither the caller nor the experiment names a parser."""
    if parse is None and analysis.run.experiment.answer is None:
        return ()
    return answer_stability(analysis, parse)


def before(parse: AnswerParser, until: Sequence[str]) -> AnswerParser:
    """A parser of the text before the first of `until`; `parse` itself if there are none."""
    if not until:
        return parse
    return lambda text: parse(text[: min((text + end).index(end) for end in until)])


def answered_item(
    named: tuple[int, str, str | None],
    responses: Sequence[Response],
    expected: str | None,
    *,
    div_index: int | None,
    top1_std: float | None = None,
) -> AnsweredItem:
    """An item from its responses; `named` are its number (from 0), its prompt and its id."""
    index, prompt, identifier = named
    by_size: defaultdict[int, Counter[str | None]] = defaultdict(Counter)
    answers: defaultdict[int, set[str | None]] = defaultdict(set)
    raw: defaultdict[int, set[str]] = defaultdict(set)
    for response in responses:
        by_size[response.batch_size][response.answer] += response.completions
        answers[response.seed].add(response.answer)
        raw[response.seed].add(response.identity or response.text)
    return AnsweredItem(
        prompt_index=index,
        prompt=prompt,
        expected=expected,
        answers=_answer_counts(responses, by_size),
        distinct_within_seed=max(map(len, answers.values()), default=0),
        raw_distinct_within_seed=max(map(len, raw.values()), default=0),
        div_index=div_index,
        correct_share={}
        if expected is None
        else {size: by_size[size][expected] / by_size[size].total() for size in sorted(by_size)},
        top1_std=top1_std,
        id=identifier,
    )


def stability_of(kernels: str, items: Sequence[AnsweredItem]) -> AnswerStability:
    """The statistics of the items of one kernels setting."""
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


def _known_answers(items: Sequence[PromptItem]) -> Mapping[int, str]:
    """The right answers of an experiment, by prompt index."""
    answers = ((index, item.answer) for index, item in enumerate(items))
    return {index: answer for index, answer in answers if answer is not None}


def _conditions(run: Run) -> Mapping[tuple[int, str], list[int]]:
    """Indices of the conditions of each (prompt index, kernels), ascending."""
    found: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for index, record in enumerate(run.conditions):
        found[record.prompt_index, record.kernels].append(index)
    return found


def _responses(run: Run, group: Group, here: Tally, parse: AnswerParser) -> list[Response]:
    """The completions of a group, counted in `here`; the most common variant first."""
    rank = {counted.variant.fingerprint: counted.rank for counted in group.variants}
    parsed = {
        counted.variant.fingerprint: parse(counted.variant.text) for counted in group.variants
    }
    found = []
    for condition, variant, count in zip(
        here.condition.tolist(), here.variant.tolist(), here.count.tolist(), strict=True
    ):
        record, stored = run.conditions[condition], run.variants[variant]
        answer, sample = parsed[stored.fingerprint], run.sample_of(record)
        found.append(
            Response(record.batch_size, stored.text, answer, stored.fingerprint, sample, count)
        )
    return sorted(found, key=lambda response: rank[response.identity])


def _answer_counts(
    responses: Sequence[Response], by_size: Mapping[int, Counter[str | None]]
) -> tuple[AnswerCount, ...]:
    total: Counter[str | None] = Counter()
    examples: dict[str | None, str] = {}
    for response in responses:
        total[response.answer] += response.completions
        examples.setdefault(response.answer, response.text)
    return tuple(
        AnswerCount(
            answer,
            completions,
            tuple(sorted(size for size, counts in by_size.items() if counts[answer])),
            examples[answer],
        )
        for answer, completions in total.most_common()
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
