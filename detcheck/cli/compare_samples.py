"""`detcheck compare` of two samples files of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detcheck.errors import UsageError
from detcheck.text import amount, count, quoted

if TYPE_CHECKING:
    from detcheck.analysis.samples import SampleDifference, SamplesComparison

MAX_ROWS = 20
"""Differing items that are printed; --json has them all."""


@dataclass(frozen=True, slots=True)
class LoadNoise:
    """How far the load alone moved the score of a run."""

    run: Path
    kernels: str
    """The kernels setting whose score moved most."""
    items: int
    points: float
    """Best minus worst score over batch sizes, in points of 100."""

    def sentence(self, comparison: SamplesComparison) -> str:
        """Whether the difference of two scores is larger than that."""
        difference = abs(_points(comparison))
        larger = "larger" if difference > self.points else "not larger"
        return (
            f"The load alone moved the score of {self.run} by {amount(self.points, 'point')} "
            f"({count(self.items, 'item')}, {self.kernels} kernels): the difference of "
            f"{amount(difference, 'point')} is {larger}."
        )


def show_samples(
    left: Path,
    right: Path,
    *,
    filter: str | None,
    metric: str | None,
    noise: Path | None,
    as_json: bool,
) -> None:
    """Hold two samples files side by side, and print which items differ and whether it matters.

    `noise` is a run whose load noise was measured. Raises UsageError if a file is no samples file,
    if they have nothing in common, if `noise` has no score, or the metric is not in points.
    """
    from detcheck.analysis.samples import compare_samples, read_samples

    comparison = compare_samples(
        read_samples(left), read_samples(right), filter=filter, metric=metric
    )
    if noise is not None and not comparison.is_share:
        raise UsageError(
            f"{comparison.metric} is not a share from 0 to 1, and --noise is measured in points of "
            "such a score: choose another --metric."
        )
    measured = None if noise is None else load_noise(noise)
    if as_json:
        _print_json(left, right, comparison, measured)
    else:
        _print(left, right, comparison, measured)


def load_noise(path: Path) -> LoadNoise:
    """The load noise of the run at `path`, of the kernels setting whose score moved most.

    Raises UsageError if the run names no parser, or has no right answers or only one batch size, or
    if no completion is right.
    """
    from detcheck.analysis.answers import stability_if_parsed
    from detcheck.gate.files import load_analysis

    scored = [one for one in stability_if_parsed(load_analysis(path)) if len(one.by_load) > 1]
    if not scored:
        raise UsageError(
            f"{path} has no score at two batch sizes: run it with a parser (`answer`), at several "
            "batch sizes, and with a prompts file that has the right answers."
        )
    if all(one.never_right for one in scored):
        raise UsageError(
            f"No completion of {path} gives a right answer, so its load could not move the score: "
            "check the parser and the answers of its prompts file."
        )
    widest = max(scored, key=lambda one: one.spread or 0.0)
    return LoadNoise(path, widest.kernels, len(widest.items), 100 * (widest.spread or 0.0))


def _points(comparison: SamplesComparison) -> float:
    """The second score minus the first, in points of 100."""
    return 100 * (comparison.right_score - comparison.left_score)


def _print(
    left: Path, right: Path, comparison: SamplesComparison, measured: LoadNoise | None
) -> None:
    from detcheck.cli.console import print_line, stdout

    for name, path in (("A", left), ("B", right)):
        print_line(f"{name}  {path}")
    for line in _lines(comparison):
        print_line(line)
    if measured is not None:
        print_line(measured.sentence(comparison))
    if comparison.differences:
        stdout.print(_table(comparison))
    if hidden := comparison.differences[MAX_ROWS:]:
        print_line(f"… {count(len(hidden), 'more item')} (--json has all)")


def _lines(comparison: SamplesComparison) -> Iterator[str]:
    """The finding, then the compared items, and those that could not be compared."""
    yield f"{comparison.metric}: {comparison.left_score:.4f} / {comparison.right_score:.4f}"
    yield f"{comparison.sentence[:1].upper()}{comparison.sentence[1:]}."
    items = count(comparison.items, "item")
    yield (
        f"{items} compared under the filter {comparison.filter}: "
        f"{comparison.responses_differ:,} with another response, "
        f"{comparison.answers_differ:,} with another answer"
    )
    if comparison.other_prompt:
        others = count(comparison.other_prompt, "item")
        yield f"not compared: {others} that both have with another prompt"
    if comparison.other_target:
        others = count(comparison.other_target, "item")
        yield f"not compared: {others} that both have with another right answer"
    if comparison.other_options:
        others = count(comparison.other_options, "item")
        yield f"{others} asked with other options: a difference may come from these, not the load"
    for name, number in (("A", comparison.only_left), ("B", comparison.only_right)):
        if number:
            yield f"only in {name}: {count(number, 'item')}"


def _table(comparison: SamplesComparison) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from detcheck.cli.console import untrusted

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("item", "score", "answer", "where the responses part"):
        table.add_column(heading, overflow="fold")
    for difference in comparison.differences[:MAX_ROWS]:
        table.add_row(*map(untrusted, _cells(difference)))
    return table


def _cells(difference: SampleDifference) -> tuple[str, ...]:
    left, right = difference.left, difference.right
    scores = f"{difference.left_score:g} / {difference.right_score:g}"
    answers = f"{quoted(left.answer, 24)} / {quoted(right.answer, 24)}"
    if left.answer == right.answer:
        answers = f"{quoted(left.answer, 24)}, the same"
    parting = difference.divergence
    if left.log_likelihoods and len(left.log_likelihoods) == len(right.log_likelihoods):
        pairs = zip(left.log_likelihoods, right.log_likelihoods, strict=True)
        moved = max(abs(a - b) for a, b in pairs)
        return left.item, scores, answers, f"log-likelihoods differ by up to {moved:.3g}"
    where = "the responses are equal" if parting is None else parting.sentence
    return left.item, scores, answers, where.removeprefix("they part ")


def _print_json(
    left: Path, right: Path, comparison: SamplesComparison, measured: LoadNoise | None
) -> None:
    from detcheck.cli.console import print_json

    names = (
        *("filter", "metric", "items", "other_prompt", "other_target", "only_right", "left_score"),
        *("other_options", "only_left", "is_share"),
        *("right_score", "responses_differ", "answers_differ", "better", "worse", "p_value"),
        *("within_noise", "sentence"),
    )
    print_json(
        {
            "left": {"samples": left},
            "right": {"samples": right},
            **{name: getattr(comparison, name) for name in names},
            "load_noise": _noise_row(comparison, measured),
            "differences": [_row(difference) for difference in comparison.differences],
        }
    )


def _noise_row(comparison: SamplesComparison, measured: LoadNoise | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    return {
        "run": measured.run,
        "kernels": measured.kernels,
        "items": measured.items,
        "points": measured.points,
        "exceeded": abs(_points(comparison)) > measured.points,
    }


def _row(difference: SampleDifference) -> dict[str, Any]:
    left, right = difference.left, difference.right
    return {
        "item": left.item,
        "target": left.target,
        "left": {
            "response": left.response, "answer": left.answer, "score": difference.left_score,
        },
        "right": {
            "response": right.response, "answer": right.answer, "score": difference.right_score,
        },
        "parting": difference.divergence,
    }  # fmt: skip
