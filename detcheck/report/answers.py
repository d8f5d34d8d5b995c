"""The six questions that a report answers first, each in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE, Lack, lacking
from detcheck.analysis.results import (
    CONFIDENT,
    FLIP_KINDS,
    UNKNOWN,
    Analysis,
    Divergence,
    Group,
)
from detcheck.kernels.settings import AS_SERVED, BATCH_INVARIANT, STOCK
from detcheck.report.checks import batches, checks
from detcheck.report.text import factor, number
from detcheck.text import count, one_line

GOOD = "good"
BAD = "bad"
OPEN = "open"
"""The answer is neither: it is not known, or there is nothing to judge."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, its answer in a few words, and one line more."""

    question: str
    answer: str
    detail: str
    mark: str


def six_answers(analysis: Analysis) -> tuple[Answer, ...]:
    """How many, where, why, does the cure work, what it costs, and whether to trust it."""
    control = control_groups(analysis)
    cure = cure_groups(analysis)
    doubt = next(iter(lacking(analysis, analysis.groups)), None)
    one = GOOD if doubt is None else OPEN
    return (
        _how_many(control, one),
        _where(control, one),
        _why(analysis.groups, one),
        _cure(control, cure, doubt),
        _cost(control, cure),
        _trust(analysis),
    )


def control_groups(analysis: Analysis) -> tuple[Group, ...]:
    """The stock groups; where there are none, those of the first kernels setting."""
    kernels = [group.kernels for group in analysis.groups]
    chosen = STOCK if STOCK in kernels else next(iter(kernels), STOCK)
    return tuple(group for group in analysis.groups if group.kernels == chosen)


def cure_groups(analysis: Analysis) -> tuple[Group, ...]:
    """The batch-invariant groups; where there are none, those of the first subset tried."""
    others = [group.kernels for group in analysis.groups]
    kernels = [name for name in others if name not in (STOCK, AS_SERVED)]
    chosen = BATCH_INVARIANT if BATCH_INVARIANT in kernels else next(iter(kernels), None)
    return tuple(group for group in analysis.groups if group.kernels == chosen)


def beside_stock(stock: Group, group: Group) -> str:
    """Whether the answers of a group are among stock's: `its answer is one of stock's 12`.

    Empty where one of them gave none.
    """
    if not stock.variants or not group.variants:
        return ""
    shared = len(_fingerprints(stock) & _fingerprints(group))
    if group.distinct > 1:
        return f"{shared or 'none'} of its {group.distinct:,} answers came from stock too"
    if stock.distinct == 1:
        return "its answer is stock's too" if shared else "its answer is not stock's"
    return f"its answer is {'one' if shared else 'none'} of stock's {stock.distinct:,}"


def _fingerprints(group: Group) -> set[str]:
    return {counted.variant.fingerprint for counted in group.variants}


def _how_many(groups: Sequence[Group], one: str) -> Answer:
    """`one` is the mark of a single answer: good only where the evidence is whole."""
    question = "How many answers?"
    total = sum(group.completions for group in groups)
    if total == 0:
        return Answer(question, "None came back", "nothing was measured", BAD)
    worst = max(groups, key=lambda group: group.distinct)
    mark = one if worst.distinct == 1 else BAD
    if len(groups) == 1:
        answer = f"{worst.distinct:,} distinct of {total:,}"
        detail = f"{worst.kernels} kernels; the most common came back {worst.most_common:,} times"
        return Answer(question, answer, detail, mark)
    differing = sum(group.distinct > 1 for group in groups)
    answer = _each(worst)
    detail = f"{worst.kernels} kernels; {differing} of {len(groups)} prompts have more than one"
    return Answer(question, answer, detail, mark)


def _each(worst: Group) -> str:
    """How many answers to each of several prompts; `worst` has most."""
    return f"{'' if worst.distinct == 1 else 'up to '}{worst.distinct:,} distinct each"


def _where(groups: Sequence[Group], one: str) -> Answer:
    question = "Where do they part?"
    parted = [group for group in groups if group.divergences]
    if not parted:
        return Answer(question, "Nowhere", "every completion is the same", one)
    group = min(parted, key=lambda group: group.first_divergence or 0)
    first = _first(group)
    answer = f"from {group.unit} {first.position:,} on"
    detail = f"{_quoted(first.reference_piece)} or {_quoted(first.piece)}"
    return Answer(question, answer, detail, BAD)


def _first(group: Group) -> Divergence:
    """The most common of the earliest divergences."""
    return min(group.divergences, key=lambda found: (found.position, -found.count))


def _quoted(piece: str) -> str:
    words = one_line(piece.strip(), 80).split(" ")
    return f"“{' '.join(words[:3])[:28]}”" if piece.strip() else "the end"


def _why(groups: Sequence[Group], one: str) -> Answer:
    question = "Rounding or a bug?"
    flips: Counter[str] = Counter()
    for group in groups:
        flips.update(group.flips)
    said = ", ".join(_of_kind(flips[kind], kind) for kind in FLIP_KINDS if flips[kind])
    if not said:
        return Answer(question, "Nothing to explain", "no answer left the reference", one)
    if flips[CONFIDENT]:
        return Answer(question, f"A bug: {flips[CONFIDENT]} confident", _gaps(groups), BAD)
    if flips[UNKNOWN]:
        detail = "the engine gave no log-probabilities"
        if sum(flips.values()) > flips[UNKNOWN]:
            detail = f"{said}; without log-probabilities it cannot be told"
        return Answer(question, "Unknown", detail, OPEN)
    return Answer(question, f"Rounding: {said}", _gaps(groups), OPEN)


def _of_kind(flips: int, kind: str) -> str:
    """`2 ties`, but `2 confident`."""
    return count(flips, kind) if kind.endswith("tie") else f"{flips:,} {kind}"


def _gaps(groups: Sequence[Group]) -> str:
    """The widest gap that was crossed beside the noise that could cross it."""
    gaps = [
        found.flip.gap
        for group in groups
        for found in group.divergences
        if found.flip.gap is not None
    ]
    noises = [group.noise for group in groups if group.noise is not None]
    said = f"gaps up to {number(max(gaps))} nats" if gaps else "gaps unknown"
    return said + (f", measured noise {number(max(noises))}" if noises else ", noise not measured")


def _cure(control: Sequence[Group], cure: Sequence[Group], doubt: Lack | None) -> Answer:
    question = "Does the cure work?"
    if not cure:
        served = bool(control) and control[0].kernels == AS_SERVED
        how = (
            "start the server with its determinism flag"
            if served
            else "add -k stock,batch-invariant"
        )
        return Answer(question, "Not tried", how, OPEN)
    worst = max(cure, key=lambda group: group.distinct)
    total = sum(group.completions for group in cure)
    if total == 0:
        return Answer(question, "Unknown", f"{worst.kernels}: nothing came back", BAD)
    found = f"{worst.distinct:,} distinct of {total:,}"
    if len(cure) > 1:
        found = _each(worst)
    answer, detail, mark = _cured(control, worst, found, doubt)
    return Answer(question, answer, "; ".join(filter(None, (detail, _shared(control, cure)))), mark)


def _cured(
    control: Sequence[Group], worst: Group, found: str, doubt: Lack | None
) -> tuple[str, str, str]:
    """What the count under the cure proves beside a control: answer, detail and mark."""
    if worst.distinct > 1:
        return f"No: {found}", f"{worst.kernels} kernels", BAD
    if control[0].kernels != STOCK:
        return found, "there is no stock control beside it", OPEN
    if not any(group.distinct > 1 for group in control):
        return "Cannot be shown", CONTROL_DID_NOT_DIVERGE, OPEN
    if doubt is not None:
        return f"Not shown yet: {found}", doubt.sentence.rstrip("."), OPEN
    return f"Yes: {found}", _bound(worst), GOOD


def _shared(control: Sequence[Group], cure: Sequence[Group]) -> str:
    """Whether the cure answers as stock does, over all prompts; empty without stock."""
    if control[0].kernels != STOCK:
        return ""
    pairs = list(zip(control, cure, strict=True))
    if len(pairs) == 1:
        return beside_stock(*pairs[0])
    within = sum(
        bool(group.variants) and _fingerprints(group) <= _fingerprints(stock)
        for stock, group in pairs
    )
    return f"every answer is one of stock's on {within} of {len(pairs)} prompts"


def _bound(group: Group) -> str:
    """What speaks against a single answer being the whole truth."""
    if group.logprobs_differ:
        return f"{group.kernels}; but log-probabilities differ in some bit"
    statistics = group.statistics
    if statistics is None or statistics.differ_upper_bound is None:
        return f"{group.kernels} kernels"
    bound = 100 * statistics.differ_upper_bound
    return f"{group.kernels}; at most {number(bound, 2)}\u00a0% can differ (95\u00a0%)"


def _cost(control: Sequence[Group], cure: Sequence[Group]) -> Answer:
    question = "What does it cost?"
    costs = [group.relative_cost for group in cure if group.relative_cost is not None]
    if not costs:
        detail = "it needs stock and batch-invariant kernels in one run"
        return Answer(question, "Not measured", detail, OPEN)
    low, high = factor(min(costs)), factor(max(costs))
    answer = f"{low} the time a token" if low == high else f"{low} to {high} a token"
    speeds = [_speed(control), _speed(cure)]
    detail = f"{number(speeds[0])} → {number(speeds[1])} tokens a second"
    return Answer(question, answer, detail, OPEN)


def _speed(groups: Sequence[Group]) -> float | None:
    speeds = [group.tokens_per_second for group in groups if group.tokens_per_second]
    return sum(speeds) / len(speeds) if speeds else None


def _trust(analysis: Analysis) -> Answer:
    """Good only where the gate would find all the evidence, and nothing limits what it shows."""
    question = "Can I trust this?"
    found = checks(analysis)
    for passed, verdict, mark in ((False, "Not yet", BAD), (None, "With a reservation", OPEN)):
        for check in found:
            if check.passed is passed:
                return Answer(question, f"{verdict}: {check.title}", check.sentence, mark)
    return Answer(question, f"Yes: {len(found)} of {len(found)} checks", batches(analysis), GOOD)
