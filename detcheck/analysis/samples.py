"""Two evaluations of the same items: which answers differ, and is the difference of scores noise?

Reads the samples files that lm-evaluation-harness writes with `--log_samples` (versions 0.4 and
later): one JSON object a line and item; before version 0.4.3 one array of these. Its early versions
name no filter: what an item has under the task's second filter is then called `none 2`.

Of the items that both files have with the same prompt, those whose score changed went up or down.
If a change of load, and nothing better or worse, made them change, up and down are equally likely:
an exact sign test (two-sided binomial, rate one half) says how surprising the difference is.
"""

from __future__ import annotations

import json
import math
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path
from typing import Any

from detcheck.analysis.compare import PromptDivergence, divergence_of_text
from detcheck.errors import UsageError
from detcheck.prompts.lm_eval import array_items
from detcheck.text import count, signed, verb

SIGNIFICANCE = 0.05
"""Differences of scores that chance gives less often than this are not called noise."""
DEFAULT_FILTER = "none"
_BOOKKEEPING = frozenset(
    ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics")
)


@dataclass(frozen=True, slots=True)
class EvaluationSample:
    """One item of a samples file, under one filter."""

    item: str
    """`doc_id` of the item."""
    prompt: str
    """The arguments of its first request, as they were sent."""
    response: str
    """The model's answer."""
    answer: str
    """The filter's result; of a choice among continuations the most likely one."""
    target: str
    scores: Mapping[str, float]
    """By metric; finite numbers only."""
    options: str = ""
    """The options of its first request, such as `until`, as JSON; empty if it has none."""
    log_likelihoods: tuple[float, ...] = ()
    """Of the continuations, if it is a choice among several; in nats."""

    @property
    def asks(self) -> tuple[str, str]:
        """The question and its right answer: scores can be compared if these are equal."""
        return self.prompt, self.target


@dataclass(frozen=True)
class SamplesFile:
    """A samples file as read."""

    path: Path
    samples: Mapping[str, Sequence[EvaluationSample]]
    """By filter, in the order of the file."""

    @cached_property
    def filters(self) -> tuple[str, ...]:
        """The filters, in the order of the file."""
        return tuple(self.samples)


@dataclass(frozen=True, slots=True)
class SampleDifference:
    """An item whose answers or scores differ between two files."""

    left: EvaluationSample
    right: EvaluationSample
    left_score: float
    right_score: float
    divergence: PromptDivergence | None
    """Where the responses diverge, by characters; None if they are equal or are a choice."""


@dataclass(frozen=True, slots=True)
class SamplesComparison:
    """Two samples files side by side, under one filter and metric."""

    filter: str
    metric: str
    items: int
    """Items that both have, with the same prompt and the same right answer."""
    other_prompt: int
    """Items that both have with another prompt: they asked something else and are not compared."""
    other_target: int
    """Items that both have with the same prompt and another right answer: not compared either."""
    other_options: int
    """Compared items that were asked with other options, such as a limit of tokens."""
    only_left: int
    only_right: int
    left_score: float
    """Mean of the metric over the compared items."""
    right_score: float
    responses_differ: int
    """Compared items with another response."""
    answers_differ: int
    """Compared items with another answer."""
    better: int
    """Compared items that score higher on the right."""
    worse: int
    """Compared items that score lower on the right."""
    differences: tuple[SampleDifference, ...]
    """Items with another response, answer or score, in the order of the left file."""

    is_share: bool = True
    """Whether all scores are from 0 to 1, so that they are told in points of 100."""

    @property
    def p_value(self) -> float:
        """Chance of at least such a difference if up and down are equally likely."""
        return sign_test(self.better, self.worse)

    @property
    def within_noise(self) -> bool:
        """Whether flips without a direction explain the difference of the scores."""
        return self.p_value >= SIGNIFICANCE

    @property
    def sentence(self) -> str:
        """The finding in words."""
        changed = self.better + self.worse
        change = self.right_score - self.left_score
        difference = signed(100 * change, "point") if self.is_share else f"{change:+.3g}"
        if not changed:
            return "no item changed its score"
        its = verb(changed, "its", "their")
        verdict = "within load noise" if self.within_noise else "more than load noise"
        return (
            f"{changed:,} of {count(self.items, 'item')} changed {its} score ({self.better:,} up, "
            f"{self.worse:,} down): {difference}, {verdict} (p = {self.p_value:.2g})"
        )


def read_samples(path: Path) -> SamplesFile:
    """Read a samples file of lm-evaluation-harness.

    Raises UsageError, naming the line, if the file cannot be read or is not such a file.
    """
    samples: dict[str, list[EvaluationSample]] = {}
    seen: set[tuple[str, str]] = set()
    unnamed: Counter[str] = Counter()
    for number, value in _values(path):
        try:
            data = _object(value)
            sample = _sample(data)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path} line {number} is not an item of a samples file of lm-evaluation-harness "
                f"0.4 or later ({_reason(error)}): write it with --log_samples."
            ) from error
        unnamed[sample.item] += "filter" not in data
        nth = f" {unnamed[sample.item]}" if unnamed[sample.item] > 1 else ""
        name = str(data.get("filter", f"{DEFAULT_FILTER}{nth}"))
        if (name, sample.item) in seen:
            raise UsageError(f"{path} line {number} holds item {sample.item} a second time.")
        seen.add((name, sample.item))
        samples.setdefault(name, []).append(sample)
    if not samples:
        raise UsageError(f"{path} holds no items.")
    return SamplesFile(path, samples)


def compare_samples(
    left: SamplesFile, right: SamplesFile, *, filter: str | None = None, metric: str | None = None
) -> SamplesComparison:
    """Hold two samples files side by side, by default under the first filter and metric of both.

    Raises UsageError if they have no item, filter or metric in common.
    """
    name = _common("filter", filter, left.filters, right.filters)
    ours = {sample.item: sample for sample in left.samples[name]}
    theirs = {sample.item: sample for sample in right.samples[name]}
    both = [(sample, theirs[item]) for item, sample in ours.items() if item in theirs]
    same_prompt = [(a, b) for a, b in both if a.prompt == b.prompt]
    pairs = [(a, b) for a, b in same_prompt if a.asks == b.asks]
    if not pairs:
        raise UsageError(
            f"{left.path} and {right.path} have no item with the same prompt and right answer: "
            "nothing to compare."
        )
    score = _common("metric", metric, *(_metrics(side) for side in zip(*pairs, strict=True)))
    changes = [b.scores[score] - a.scores[score] for a, b in pairs]
    return SamplesComparison(
        filter=name,
        metric=score,
        items=len(pairs),
        other_prompt=len(both) - len(same_prompt),
        other_target=len(same_prompt) - len(pairs),
        other_options=sum(a.options != b.options for a, b in pairs),
        only_left=len(ours) - len(both),
        only_right=len(theirs) - len(both),
        left_score=sum(a.scores[score] for a, _ in pairs) / len(pairs),
        right_score=sum(b.scores[score] for _, b in pairs) / len(pairs),
        responses_differ=sum(a.response != b.response for a, b in pairs),
        answers_differ=sum(a.answer != b.answer for a, b in pairs),
        better=sum(change > 0 for change in changes),
        worse=sum(change < 0 for change in changes),
        differences=tuple(_differences(pairs, score)),
        is_share=all(0 <= one.scores[score] <= 1 for pair in pairs for one in pair),
    )


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact sign test: chance of so uneven a split, or a more uneven one, by halves."""
    changed = better + worse
    tail = sum(comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**changed))


def _differences(
    pairs: Sequence[tuple[EvaluationSample, EvaluationSample]], score: str
) -> list[SampleDifference]:
    return [
        SampleDifference(
            a,
            b,
            a.scores[score],
            b.scores[score],
            None if a.log_likelihoods else divergence_of_text(a.response, b.response),
        )
        for a, b in pairs
        if (a.response, a.answer, a.scores[score]) != (b.response, b.answer, b.scores[score])
    ]


def _common(kind: str, wanted: str | None, left: Sequence[str], right: Sequence[str]) -> str:
    """`wanted`, else the first name that both sides have; raises UsageError if there is none."""
    common = [name for name in left if name in right]
    if wanted is not None and wanted in common:
        return wanted
    if wanted is not None or not common:
        ours, theirs = (", ".join(map(repr, names)) or "none" for names in (left, right))
        raise UsageError(
            f"The samples files have no {kind} {wanted or 'in common'}: one has {ours}, the other "
            f"{theirs}."
            + " A metric counts if every compared item has a number for it."
            * (kind == "metric")
        )
    return common[0]


def _metrics(samples: Sequence[EvaluationSample]) -> list[str]:
    """The metrics that every one of `samples` has, in the order of the first."""
    return [name for name in samples[0].scores if all(name in one.scores for one in samples)]


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """The items of a samples file with their lines: JSON as bytes, or members of one array."""
    try:
        data = path.read_bytes().removeprefix(BOM_UTF8)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    if items := array_items(data.decode(errors="replace")):
        return iter(items)
    lines = enumerate(data.split(b"\n"), start=1)
    return ((number, line) for number, line in lines if line.strip())


def _sample(data: Mapping[str, Any]) -> EvaluationSample:
    """One item as a sample; raises LookupError or TypeError if it is none."""
    names = data.get("metrics")
    if not isinstance(names, list):  # older versions do not list them
        names = [name for name in data if name not in _BOOKKEEPING and not name.endswith("_hash")]
    given = {name: data[name] for name in names if isinstance(data.get(name), int | float)}
    requests = _requests(data["arguments"])
    options = requests[0][1] if len(requests[0]) > 1 else None
    log_likelihoods = _log_likelihoods(requests, data["filtered_resps"])
    return EvaluationSample(
        item=str(data["doc_id"]),
        prompt=_text(requests[0][0]),
        response=_text(log_likelihoods or data["resps"]),
        answer=_text(requests[log_likelihoods.index(max(log_likelihoods))][1]).strip()
        if log_likelihoods
        else _text(data["filtered_resps"]),
        target=_text(data["target"]),
        scores={name: float(score) for name, score in given.items() if math.isfinite(score)},
        options=_text(options) if isinstance(options, Mapping) else "",
        log_likelihoods=log_likelihoods,
    )


def _object(value: Any) -> Mapping[str, Any]:
    """The JSON object of a line, in which the harness may write NaN; else raises ValueError."""
    data = json.loads(value.decode()) if isinstance(value, bytes) else value
    if not isinstance(data, dict):
        raise TypeError("it is no JSON object")
    return data


def _requests(arguments: Any) -> list[list[Any]]:
    """The sent text: `{"gen_args_0": {"arg_0": prompt, …}, …}`, or a list of (prompt, options)."""
    requests = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    if not isinstance(requests, list):
        raise TypeError("its arguments are neither a list nor an object")
    if not requests or requests[0] in ([], {}):
        raise IndexError
    return [_arguments(request) for request in requests]


def _arguments(request: Any) -> list[Any]:
    """The arguments of one request in order, the prompt first."""
    if isinstance(request, Mapping):
        return [request["arg_0"], *(kept for name, kept in request.items() if name != "arg_0")]
    return request if isinstance(request, list) else [request]


def _log_likelihoods(requests: Sequence[Sequence[Any]], results: Any) -> tuple[float, ...]:
    """Of a choice among continuations, the log-likelihood of each; empty for any other item.

    The result of each request is [log-likelihood, whether it is the greedy one], as text or not.
    """
    if len(requests) < 2 or not isinstance(results, list) or len(results) != len(requests):
        return ()
    if not all(len(request) > 1 and isinstance(request[1], str) for request in requests):
        return ()
    try:
        return tuple(float(result[0]) for result in results)
    except (ValueError, TypeError, LookupError):
        return ()


def _text(value: Any) -> str:
    """A value as text; lists of one are unwrapped, since items have one response as a rule."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text.encode(errors="replace").decode()  # JSON may escape half a character


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    if isinstance(error, IndexError):
        return "it holds no request"
    return str(error)
