"""The six cards with which a report begins: a question each, and its answer in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from detcheck.analysis.evidence import lacking
from detcheck.analysis.results import (
    CONFIDENT,
    UNKNOWN,
    Analysis,
    Divergence,
    Group,
)
from detcheck.report.card import (
    BAD,
    GOOD,
    OPEN,
    Card,
    answers_of,
    completions_of,
    most_varied_of,
    samples_sentence,
)
from detcheck.report.checks import batches, trust_checks
from detcheck.report.costs import Cost, total_cost
from detcheck.report.cure_card import cure_card
from detcheck.report.roles import control_groups, cure_groups
from detcheck.report.text import factor, flip_counts, number
from detcheck.text import count, one_line, verb

HOW_MANY = "How many answers?"
WHERE = "Where do they diverge?"
WHY = "Rounding or a bug?"
COST = "What does it cost?"
TRUST = "Can I trust this?"


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
        cure_card(control, cure, doubt),
        _cost(control, cure),
        _trust(analysis),
    )


def _how_many(groups: Sequence[Group], mark_if_one: str) -> Card:
    if not completions_of(groups):
        return Card(HOW_MANY, "None came back", "nothing was measured", BAD)
    worst = most_varied_of(groups)
    mark = mark_if_one if worst.distinct_within_seed == 1 else BAD
    answer = answers_of(worst, several=len(groups) > 1)
    if len(groups) == 1:
        detail = samples_sentence(worst) or (
            f"{worst.kernels} kernels; the most common came back {count(worst.most_common, 'time')}"
        )
        return Card(HOW_MANY, answer, detail, mark)
    differing = sum(group.distinct_within_seed > 1 for group in groups)
    have = verb(differing, "has", "have")
    detail = f"{worst.kernels} kernels; {differing} of {len(groups)} prompts {have} more than one"
    return Card(HOW_MANY, answer, detail, mark)


def _where(groups: Sequence[Group], mark_if_one: str) -> Card:
    diverged = [group for group in groups if group.divergences]
    if not completions_of(groups):
        return Card(WHERE, "Unknown", "no completion came back", OPEN)
    if not diverged:
        if completions_of(groups) == 1:
            return Card(WHERE, "Unknown", "1 completion came back: there is no other", OPEN)
        which = "completion that came back" if any(each.failed for each in groups) else "completion"
        return Card(WHERE, "Nowhere", f"every {which} is the same", mark_if_one)
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
    if not completions_of(groups):
        return Card(WHY, "Unknown", "no completion came back", OPEN)
    if completions_of(groups) == 1:
        return Card(WHY, "Unknown", "1 completion came back: there is no other", OPEN)
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
    scores = " of perturbed scores" if analysis.gaps_perturbed else ""
    widest = f"gaps{scores} up to {number(max(gaps))} nats" if gaps else "gaps unknown"
    noise = f"measured noise {number(max(noises))}" if noises else "noise not measured"
    return f"{widest}, {noise}"


def _known_gaps(groups: Sequence[Group]) -> list[float]:
    """Every gap that was measured at a branching, on either side."""
    flips = [branching.flip for group in groups for branching in group.branchings]
    gaps = [gap for flip in flips for gap in (flip.reference_gap, flip.variant_gap)]
    return [gap for gap in gaps if gap is not None]


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
    return Card(
        TRUST, f"Yes: {len(found)} of {count(len(found), 'check')}", batches(analysis), GOOD
    )
