"""The six cards with which a report begins: a question each, and its answer in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE, Finding, lacking
from detcheck.analysis.results import (
    CONFIDENT,
    UNKNOWN,
    Analysis,
    Divergence,
    Group,
)
from detcheck.kernels.settings import AS_SERVED, STOCK
from detcheck.report.checks import batches, trust_checks
from detcheck.report.costs import Cost, total_cost
from detcheck.report.roles import compared_over_prompts, control_groups, cure_groups
from detcheck.report.text import factor, flip_counts, number
from detcheck.text import count, one_line

GOOD = "good"
BAD = "bad"
OPEN = "open"
"""Neither good nor bad: it is not known, or there is nothing to judge."""

HOW_MANY = "How many answers?"
WHERE = "Where do they diverge?"
WHY = "Rounding or a bug?"
CURE = "Does the cure work?"
COST = "What does it cost?"
TRUST = "Can I trust this?"


@dataclass(frozen=True, slots=True)
class Card:
    """One question, its answer in a few words, and one line of detail."""

    question: str
    answer: str
    detail: str
    mark: str
    """GOOD, BAD or OPEN."""


def six_cards(analysis: Analysis) -> tuple[Card, ...]:
    """How many, where, why, whether the cure works, what it costs, and whether to trust it."""
    control = control_groups(analysis)
    cure = cure_groups(analysis)
    doubt = next(iter(lacking(analysis, analysis.groups)), None)
    mark_if_one = GOOD if doubt is None else OPEN
    return (
        _how_many(control, mark_if_one),
        _where(control, mark_if_one),
        _why(analysis, mark_if_one),
        _cure(control, cure, doubt),
        _cost(control, cure),
        _trust(analysis),
    )


def _how_many(groups: Sequence[Group], mark_if_one: str) -> Card:
    total = _completions(groups)
    if total == 0:
        return Card(HOW_MANY, "None came back", "nothing was measured", BAD)
    worst = max(groups, key=lambda group: group.distinct)
    mark = mark_if_one if worst.distinct == 1 else BAD
    if len(groups) == 1:
        answer = f"{worst.distinct:,} distinct of {total:,}"
        detail = f"{worst.kernels} kernels; the most common came back {worst.most_common:,} times"
        return Card(HOW_MANY, answer, detail, mark)
    differing = sum(group.distinct > 1 for group in groups)
    have = "has" if differing == 1 else "have"
    detail = f"{worst.kernels} kernels; {differing} of {len(groups)} prompts {have} more than one"
    return Card(HOW_MANY, _for_each(worst), detail, mark)


def _completions(groups: Sequence[Group]) -> int:
    """How many completions came back."""
    return sum(group.completions for group in groups)


def _for_each(worst: Group) -> str:
    """How many answers several prompts have; `worst` has the most."""
    return f"{'' if worst.distinct == 1 else 'up to '}{worst.distinct:,} distinct each"


def _where(groups: Sequence[Group], mark_if_one: str) -> Card:
    diverged = [group for group in groups if group.divergences]
    if not _completions(groups):
        return Card(WHERE, "Unknown", "no completion came back", OPEN)
    if not diverged:
        return Card(WHERE, "Nowhere", "every completion is the same", mark_if_one)
    group = min(diverged, key=lambda group: group.first_divergence or 0)
    first = _first(group)
    answer = f"from {group.unit} {first.position:,} on"
    detail = f"{_quoted(first.reference_piece)} or {_quoted(first.piece)}"
    return Card(WHERE, answer, detail, BAD)


def _first(group: Group) -> Divergence:
    """The most common of the earliest divergences."""
    return min(group.divergences, key=lambda found: (found.position, -found.count))


def _quoted(piece: str) -> str:
    words = one_line(piece.strip(), 80).split(" ")
    return f"“{' '.join(words[:3])[:28]}”" if piece.strip() else "the end"


def _why(analysis: Analysis, mark_if_one: str) -> Card:
    groups = analysis.groups
    flips: Counter[str] = Counter()
    for group in groups:
        flips.update(group.flips)
    kinds = flip_counts(flips)
    if not _completions(groups):
        return Card(WHY, "Unknown", "no completion came back", OPEN)
    if not kinds:
        return Card(WHY, "Nothing to explain", "no answer left the reference", mark_if_one)
    if flips[CONFIDENT]:
        return Card(WHY, f"A bug: {flips[CONFIDENT]} confident", _gaps(analysis), BAD)
    if flips[UNKNOWN]:
        others = sum(flips.values()) > flips[UNKNOWN]
        detail = f"{kinds}; {_unknown_because(groups)}" if others else _unknown_because(groups)
        return Card(WHY, "Unknown", detail, OPEN)
    return Card(WHY, f"Rounding: {kinds}", _gaps(analysis), OPEN)


def _unknown_because(groups: Sequence[Group]) -> str:
    """The reason why the kind of a flip is not known."""
    if _known_gaps(groups):
        return "the noise could not be measured in this run"
    return "the engine gave no log-probabilities"


def _gaps(analysis: Analysis) -> str:
    """The widest gap at a branching, and the measured noise that could have closed it."""
    gaps = _known_gaps(analysis.groups)
    noises = [group.noise for group in analysis.groups if group.noise is not None]
    widest = f"gaps up to {number(max(gaps))} nats" if gaps else "gaps unknown"
    noise = f"measured noise {number(max(noises))}" if noises else "noise not measured"
    sampled = "; above temperature 0, gaps are those of perturbed scores"
    return f"{widest}, {noise}" + (sampled if analysis.gaps_perturbed else "")


def _known_gaps(groups: Sequence[Group]) -> list[float]:
    """Every gap that was measured at a branching, on either side."""
    flips = [branching.flip for group in groups for branching in group.branchings]
    gaps = [gap for flip in flips for gap in (flip.reference_gap, flip.variant_gap)]
    return [gap for gap in gaps if gap is not None]


def _cure(control: Sequence[Group], cure: Sequence[Group], doubt: Finding | None) -> Card:
    if not cure:
        served = bool(control) and control[0].kernels == AS_SERVED
        how = (
            "start the server with its determinism flag"
            if served
            else "add -k stock,batch-invariant"
        )
        return Card(CURE, "Not tried", how, OPEN)
    worst = max(cure, key=lambda group: group.distinct)
    total = _completions(cure)
    if total == 0:
        return Card(CURE, "Unknown", f"{worst.kernels}: no completion came back", BAD)
    found = f"{worst.distinct:,} distinct of {total:,}" if len(cure) == 1 else _for_each(worst)
    answer, detail, mark = _cured(control, worst, found, doubt)
    beside = compared_over_prompts(control, cure)
    return Card(CURE, answer, "; ".join(filter(None, (detail, beside))), mark)


def _cured(
    control: Sequence[Group], worst: Group, found: str, doubt: Finding | None
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


def _bound(group: Group) -> str:
    """How often the cure could still give another answer, although none was seen."""
    if group.logprobs_differ:
        return f"{group.kernels}; but log-probabilities differ in some bit"
    statistics = group.statistics
    if statistics is None or statistics.differ_upper_bound is None:
        return f"{group.kernels} kernels"
    bound = number(100 * statistics.differ_upper_bound, 2)
    comparisons = count(statistics.comparisons, "comparison")
    return f"{group.kernels}; 0 of {comparisons} differed: at most {bound}\u00a0% can (95\u00a0%)"


def _cost(control: Sequence[Group], cure: Sequence[Group]) -> Card:
    cost = total_cost(cure)
    if cost is None:
        detail = "it needs stock and batch-invariant kernels in one run"
        return Card(COST, "Not measured", detail, OPEN)
    speeds = f"{number(_speed(control))} → {number(_speed(cure))} tokens per second"
    detail = f"{_spread(cost)}; {speeds}" if cost.spread else speeds
    return Card(COST, f"{factor(cost.mean)} the time per token", detail, OPEN)


def _spread(cost: Cost) -> str:
    return f"{factor(cost.low)} to {factor(cost.high)} {cost.over}"


def _speed(groups: Sequence[Group]) -> float | None:
    speeds = [group.tokens_per_second for group in groups if group.tokens_per_second]
    return sum(speeds) / len(speeds) if speeds else None


def _trust(analysis: Analysis) -> Card:
    """Good only if the gate would find all the evidence, and nothing limits what it shows."""
    found = trust_checks(analysis)
    for passed, verdict, mark in ((False, "Not yet", BAD), (None, "With a reservation", OPEN)):
        for check in found:
            if check.passed is passed:
                return Card(TRUST, f"{verdict}: {check.title}", check.sentence, mark)
    return Card(TRUST, f"Yes: {len(found)} of {len(found)} checks", batches(analysis), GOOD)
