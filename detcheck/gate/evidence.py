"""The evidence that a pass needs: rules that never fail a run, and keep it from passing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detcheck.analysis.results import Analysis, Group
from detcheck.experiment import AS_SERVED, STOCK
from detcheck.gate.verdict import INCONCLUSIVE, NOTE, Finding, Rule
from detcheck.text import one_line, quoted


@dataclass(frozen=True, slots=True)
class RunComplete:
    """No pass for a run that was interrupted, failed in part, or lost conditions."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        planned = {condition.condition_id for condition in analysis.run.experiment.conditions()}
        done = {r.condition_id for r in analysis.run.conditions if r.status == "done"}
        left = len(planned - done)
        if left:
            sentence = (
                f"The run is not complete: {left} of {len(planned)} conditions were not measured "
                f"to their end{_cause(analysis)}; `detcheck run --resume` goes on with it."
            )
            yield Finding("run-complete", INCONCLUSIVE, sentence)


@dataclass(frozen=True, slots=True)
class EveryCompletion:
    """No pass where fewer completions came back than were asked for."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            asked = max(group.asked, analysis.run.experiment.completions)
            if group.completions < asked:
                failed = f" ({failures(group)})" if group.failed else ""
                sentence = f"{group.completions} of {asked} completions came back{failed}."
                yield Finding("every-completion", INCONCLUSIVE, sentence, group)


@dataclass(frozen=True, slots=True)
class BatchesObserved:
    """No pass where the batches that were asked for were not seen in the forward passes."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            if not group.evidence.observed:
                sentence = f"The load was not formed as asked: {group.evidence.sentence}."
                yield Finding("batches-observed", INCONCLUSIVE, sentence, group)


@dataclass(frozen=True, slots=True)
class KernelsProven:
    """No pass for batch-invariant kernels that were not all seen to run."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for kernels in dict.fromkeys(group.kernels for group in groups):
            lacking = _lacking_proof(analysis, kernels)
            if lacking:
                sentence = f"Nothing proves that {kernels} was in force: {lacking}."
                yield Finding("kernels-proven", INCONCLUSIVE, sentence)


@dataclass(frozen=True, slots=True)
class LoadVaried:
    """No pass where nothing changed around the request, so that no answer could have."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            if group.completions and not _load_varied(analysis, group):
                sizes = ", ".join(str(row.batch_size) for row in group.by_batch_size)
                sentence = (
                    f"The load never varied (batch size {sizes} only): this check could not have "
                    "failed; run several batch sizes, such as -b 1,4,8."
                )
                yield Finding("load-varied", INCONCLUSIVE, sentence, group)


@dataclass(frozen=True, slots=True)
class EndpointSound:
    """No pass where a check of the server failed without which its answers prove nothing."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for check in analysis.run.endpoint_checks:
            if check.holds is False:
                effect = INCONCLUSIVE if check.decisive else NOTE
                where = f"{check.placement}, " if check.placement else ""
                sentence = f"The endpoint's check failed ({where}{check.name}): {check.sentence}."
                yield Finding("endpoint-sound", effect, sentence)


OF_ITSELF: tuple[Rule, ...] = (
    RunComplete(),
    EveryCompletion(),
    BatchesObserved(),
    KernelsProven(),
    EndpointSound(),
)
"""Rules that say whether a run is evidence of anything; a baseline must keep them too."""


def failures(group: Group) -> str:
    """`5 requests failed: 3 timeout, 2 http 5xx`, kinds where the engine tells them."""
    kinds = ", ".join(f"{number} {one_line(kind)}" for kind, number in group.failures.items())
    noun = "request" if group.failed == 1 else "requests"
    return f"{group.failed} {noun} failed" + (f": {kinds}" if kinds else "")


def _cause(analysis: Analysis) -> str:
    """Why a condition failed, where one says so."""
    errors = (record.error for record in analysis.run.conditions if record.error)
    error = next(errors, None)
    return f" ({quoted(error, 100)})" if error else ""


def _lacking_proof(analysis: Analysis, kernels: str) -> str | None:
    """What the proof of a kernels setting lacks; None where it is whole. Stock needs none, and
    of a server's kernels nothing is claimed."""
    if kernels in (STOCK, AS_SERVED):
        return None
    proof = analysis.run.proofs.get(kernels)
    if proof is None:
        return "the run recorded no proof"
    if proof.missing:
        return f"overrides not seen to run: {', '.join(proof.missing)}"
    if proof.self_check != "passed":
        return f"its self-check says {quoted(proof.self_check or 'nothing', 100)}"
    if not any(proof.overrides.values()):
        return "no override served a call"
    return None


def _load_varied(analysis: Analysis, group: Group) -> bool:
    """Whether a request of this group was computed under at least two different loads."""
    sizes = {row.batch_size for row in group.by_batch_size if row.completions}
    if len(sizes) > 1:
        return True
    if sizes == {1} or group.completions < 2:
        return False
    return analysis.run.experiment.traffic == "mixed" or _num_observed_loads(analysis, group) > 1


def _num_observed_loads(analysis: Analysis, group: Group) -> int:
    """How many different batches the completions of a group were seen in."""
    run = analysis.run
    ours = [
        index
        for index, record in enumerate(run.conditions)
        if (record.prompt_index, record.kernels) == (group.prompt_index, group.kernels)
    ]
    rows = np.isin(run.completions.condition, ours) & (run.completions.rows_max > 0)
    seen = np.stack(
        [
            run.completions.rows_max[rows],
            run.completions.rows_mean[rows],
            run.completions.query_tokens_max[rows],
        ]
    )
    return int(np.unique(seen, axis=1).shape[1])
