"""The parsed answers of a run as a reader sees them: figures, sentences, items that flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.answers import AnsweredItem, AnswerStability, stability_if_parsed
from detcheck.analysis.results import Analysis
from detcheck.report.text import number, percent
from detcheck.text import count, quoted

NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class AnswersRow:
    """One kernels setting, every figure in words."""

    kernels: str
    flips: str
    """`3 of 200`."""
    interval: str
    """Exact 95 % interval of their share."""
    scores: str
    """Worst to best score over loads, in points; `–` if no right answers are known."""
    moved: str
    """Half of that spread, `±1.3`."""
    standard_error: str
    """In points."""
    accuracy_std: str
    raw_agreement: str
    parsed_agreement: str
    div_index: str
    top1_std: str
    unparsed: str


@dataclass(frozen=True, slots=True)
class FlippedItem:
    """One item whose parsed answer changed."""

    kernels: str
    name: str
    prompt: str
    expected: str
    """The right answer; empty if it is not known."""
    answers: tuple[tuple[str, str], ...]
    """(parsed answer, `40 times, at batch size 1, 4`), most common first."""
    texts: tuple[str, ...]
    """The text of the first completion of each."""


@dataclass(frozen=True, slots=True)
class AnswersView:
    """Everything that a report says of parsed answers."""

    parser: str
    rows: tuple[AnswersRow, ...]
    """One for each kernels setting."""
    sentences: tuple[tuple[str, str], ...]
    """(kernels, the finding)."""
    by_load: tuple[tuple[str, tuple[str, ...]], ...]
    """(kernels, the score at each of `batch_sizes`); empty if no right answers are known."""
    batch_sizes: tuple[int, ...]
    flipped: tuple[FlippedItem, ...]
    examples: tuple[tuple[str, tuple[str, ...]], ...]
    """(kernels, texts in which the parser found no answer)."""


def answers_of(analysis: Analysis, answer: str | None = None) -> AnswersView | None:
    """The view of a run's answers; None if neither `answer` nor the experiment names a parser."""
    parser = answer or analysis.run.experiment.answer
    return answers_view(stability_if_parsed(analysis, parser), parser or "")


def answers_view(stabilities: Sequence[AnswerStability], parser: str) -> AnswersView | None:
    """The view of all kernels settings; None if nothing was parsed."""
    if not stabilities:
        return None
    sizes = sorted({load.batch_size for one in stabilities for load in one.by_load})
    return AnswersView(
        parser=parser,
        rows=tuple(map(_row, stabilities)),
        sentences=tuple((one.kernels, finding(one)) for one in stabilities),
        by_load=tuple((one.kernels, _scores_at(one, sizes)) for one in stabilities if one.by_load),
        batch_sizes=tuple(sizes),
        flipped=tuple(_flipped(one.kernels, item) for one in stabilities for item in one.flipped),
        examples=tuple((o.kernels, o.unparsed_examples) for o in stabilities if o.unparsed),
    )


def finding(stability: AnswerStability) -> str:
    """The finding in a sentence or two, with the standard error of the set beside it."""
    sentence = stability.sentence[:1].upper() + stability.sentence[1:] + "."
    if stability.parsed_nothing:
        return sentence
    if stability.standard_error is not None:
        error = number(100 * stability.standard_error)
        items = count(len(stability.items), "item")
        sentence += f" The standard error of {items} is {error} points."
    if stability.flip_interval is not None and not stability.flipped:
        high = percent(stability.flip_interval[1])
        sentence += f" No answer changed: with 95 % confidence at most {high} of items would."
    return sentence


def _row(one: AnswerStability) -> AnswersRow:
    low, high = one.flip_interval or (None, None)
    spread = one.spread if len(one.by_load) > 1 else None
    return AnswersRow(
        kernels=one.kernels,
        flips=f"{len(one.flipped):,} of {len(one.items):,}",
        interval=f"{percent(low)} to {percent(high)}",
        scores="–" if one.worst is None else f"{points(one.worst)} to {points(one.best)}",
        moved="–" if spread is None else f"±{number(50 * spread)}",
        standard_error=points(one.standard_error),
        accuracy_std=points(one.accuracy_std),
        raw_agreement=percent(one.raw_agreement),
        parsed_agreement=percent(one.parsed_agreement),
        div_index=number(one.div_index),
        top1_std=number(one.top1_std, 2),
        unparsed=f"{one.unparsed:,}",
    )


def points(share: float | None) -> str:
    """A share of 1 in points of 100; `–` for None."""
    return "–" if share is None else f"{100 * share:.2f}"


def _scores_at(one: AnswerStability, sizes: Sequence[int]) -> tuple[str, ...]:
    known = {load.batch_size: load.accuracy for load in one.by_load}
    return tuple(points(known.get(size)) for size in sizes)


def _flipped(kernels: str, item: AnsweredItem) -> FlippedItem:
    return FlippedItem(
        kernels=kernels,
        name=item.name,
        prompt=item.prompt,
        expected=item.expected or "",
        answers=tuple(
            (
                NO_ANSWER if one.answer is None else quoted(one.answer),
                f"{count(one.completions, 'time')}, at batch size "
                f"{', '.join(map(str, one.batch_sizes))}",
            )
            for one in item.answers
        ),
        texts=tuple(one.example for one in item.answers),
    )
