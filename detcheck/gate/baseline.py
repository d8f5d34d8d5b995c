"""Holding a run against an earlier one: the same question must get the same answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.compare import experiment_differences, groups_of, in_words, parting
from detcheck.analysis.evidence import LOAD_VARIED, lacking
from detcheck.analysis.results import Analysis, Group, VariantCount
from detcheck.environment import differences
from detcheck.errors import UsageError
from detcheck.gate.verdict import FAIL, NOTE, Finding
from detcheck.rundir import Run
from detcheck.text import count

SAME_QUESTION = ("model", "max_new_tokens", "temperature", "chat_template")
"""Fields of an experiment that must agree for answers to be comparable at all."""


@dataclass(frozen=True, slots=True)
class SameAsBaseline:
    """Fails a group whose answers the baseline did not give. Build it by `hold_against`."""

    baseline: Analysis

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        ours, theirs = analysis.run, self.baseline.run
        for phrase in (
            *experiment_differences(theirs, ours),
            *differences(theirs.environment, ours.environment),
        ):
            yield Finding("baseline", NOTE, f"The environment differs from the baseline: {phrase}.")
        for group in groups:
            yield from _against(group, groups_of(self.baseline, group.prompt)[group.kernels])


def hold_against(baseline: Analysis, analysis: Analysis, kernels: Sequence[str]) -> SameAsBaseline:
    """The rule that holds `analysis` against `baseline`.

    Raises UsageError where the baseline asks another question or is no evidence itself: it could
    neither pass nor fail anything.
    """
    if baseline.run.run_id == analysis.run.run_id:
        raise UsageError("The baseline is the run itself: holding it against itself shows nothing.")
    _check_same_question(baseline.run, analysis.run)
    for name in kernels:
        if name not in baseline.run.experiment.kernels:
            raise UsageError(
                f"The baseline has no {name} kernels, only "
                f"{', '.join(baseline.run.experiment.kernels)}: choose others by --kernels."
            )
    _check_evidence(baseline, kernels)
    return SameAsBaseline(baseline)


def _check_same_question(baseline: Run, run: Run) -> None:
    for name in SAME_QUESTION:
        theirs, ours = baseline.setting(name), run.setting(name)
        if theirs != ours:
            raise UsageError(
                f"The baseline has another {name.replace('_', ' ')} ({in_words(theirs)}) than the "
                f"run ({in_words(ours)}): their answers cannot be compared."
            )
    seeds, asked = baseline.experiment.seeds, run.experiment.seeds
    if run.experiment.temperature > 0 and seeds != asked:
        raise UsageError(
            f"The baseline was sampled with seeds {in_words(seeds)}, the run with "
            f"{in_words(asked)}: "
            "their answers cannot be compared."
        )
    if set(baseline.experiment.prompts) != set(run.experiment.prompts):
        raise UsageError("The baseline asks other prompts than the run: there is nothing to hold.")


def _check_evidence(baseline: Analysis, kernels: Sequence[str]) -> None:
    groups = [group for group in baseline.groups if group.kernels in kernels]
    for lack in lacking(baseline, groups):
        if lack.rule != LOAD_VARIED:  # what one load gave is still what was given
            raise UsageError(f"The baseline is no evidence to hold a run against: {lack.sentence}")


def _against(group: Group, baseline: Group) -> Iterator[Finding]:
    """Findings on one group; it gave nothing to compare where another rule says so already."""
    if group.reference is None or baseline.reference is None:
        return
    known = {counted.variant.fingerprint for counted in baseline.variants}
    new = [counted for counted in group.variants if counted.variant.fingerprint not in known]
    if new:
        yield Finding("baseline", FAIL, _new_answers(group, baseline.reference, new), group)
    elif apart := parting(baseline.reference.variant, group.reference.variant):
        sentence = f"The reference answer is another one of the baseline's: {apart.sentence}."
        yield Finding("baseline", FAIL, sentence, group)
    else:
        yield Finding("baseline", NOTE, _same_answers(group, baseline), group)


def _new_answers(group: Group, reference: VariantCount, new: Sequence[VariantCount]) -> str:
    partings = [parting(reference.variant, counted.variant) for counted in new]
    known = [apart for apart in partings if apart is not None]
    where = f": {min(known, key=lambda apart: apart.position).sentence}" if known else ""
    completions = sum(counted.count for counted in new)
    return (
        f"{count(len(new), 'answer')} ({completions} of {group.completions} completions) the "
        f"baseline did not give{where}."
    )


def _same_answers(group: Group, baseline: Group) -> str:
    gone = baseline.distinct - group.distinct
    unseen = f"; {gone} of the baseline's {baseline.distinct} did not come back" if gone > 0 else ""
    return f"Every answer is one that the baseline gave{unseen}."
