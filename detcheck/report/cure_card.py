"""The card that says whether the cure works: no more than the evidence shows."""

from __future__ import annotations

from collections.abc import Sequence

from detcheck.analysis.evidence import CONTROL_ALIVE, Finding
from detcheck.analysis.results import Group
from detcheck.kernels.settings import AS_SERVED, STOCK, KernelSettings
from detcheck.report.card import BAD, GOOD, OPEN, Card, answers_of, completions_of, most_varied_of
from detcheck.report.roles import compared_over_prompts
from detcheck.report.text import number
from detcheck.text import count

QUESTION = "Does the cure work?"


def cure_card(control: Sequence[Group], cure: Sequence[Group], doubt: Finding | None) -> Card:
    """Whether the groups of `cure` have one answer each, and whether `control` had more.

    `doubt` is the first thing that the run lacks as evidence.
    """
    if not cure:
        served = bool(control) and control[0].kernels == AS_SERVED
        how = (
            "start the server with its determinism flag"
            if served
            else "add -k stock,batch-invariant"
        )
        return Card(QUESTION, "Not tried", how, OPEN)
    worst = most_varied_of(cure)
    if not completions_of(cure):
        return Card(QUESTION, "Unknown", f"{worst.kernels}: no completion came back", BAD)
    answer, detail, mark = _judged(control, cure, doubt)
    beside = compared_over_prompts(control, cure)
    return Card(QUESTION, answer, "; ".join(filter(None, (detail, beside))), mark)


def _judged(
    control: Sequence[Group], cure: Sequence[Group], doubt: Finding | None
) -> tuple[str, str, str]:
    """The proof that the answers under the cure give beside a control: answer, detail and mark."""
    worst = most_varied_of(cure)
    found = answers_of(worst, several=len(cure) > 1)
    moved = sum(group.logprobs_differ or 0 for group in cure)
    if worst.distinct_within_seed > 1:
        return f"No: {found}", f"{worst.kernels} kernels", BAD
    if moved and KernelSettings.parse(worst.kernels).claims_invariance:
        detail = f"the log-probabilities of {count(moved, 'completion')} differ in some bit"
        return f"No: {found}; bits differ", f"{worst.kernels}; {detail}", BAD
    if control[0].kernels != STOCK:
        return found, "there is no stock control beside it", OPEN
    if doubt is not None:
        answer = "Cannot be shown" if doubt.rule == CONTROL_ALIVE else f"Not shown yet: {found}"
        return answer, doubt.sentence.rstrip("."), OPEN
    detail = _bound(worst)
    if most_varied_of(control).distinct_within_seed == 1:
        detail += "; stock has one answer too, and only its log-probabilities moved"
    return f"Yes: {found}", detail, GOOD


def _bound(group: Group) -> str:
    """How often the cure could still give another answer, although none was seen."""
    statistics = group.statistics
    if statistics is None or statistics.differ_upper_bound is None:
        return f"{group.kernels} kernels"
    bound = number(100 * statistics.differ_upper_bound, 2)
    comparisons = count(statistics.comparisons, "comparison")
    return f"{group.kernels}; 0 of {comparisons} differed: at most {bound}\u00a0% can (95\u00a0%)"
