"""What a run lacks as evidence: while anything does, the gate passes nothing and no report trusts.

Each fact is stated once, here: how the gate judges and what the report calls trustworthy cannot
drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detcheck.analysis.batches import SHARED
from detcheck.analysis.results import Analysis, Group
from detcheck.evidence import EndpointCheck
from detcheck.kernels.settings import KernelSettings
from detcheck.text import count, one_line, quoted

RUN_COMPLETE = "run-complete"
EVERY_COMPLETION = "every-completion"
BATCHES_OBSERVED = "batches-observed"
KERNELS_PROVEN = "kernels-proven"
LOAD_VARIED = "load-varied"
ENDPOINT_SOUND = "endpoint-sound"
DROWNED = 2.0
"""Of a server that others use too, the largest batches must be so many times the smallest."""
CONTROL_DID_NOT_DIVERGE = (
    "the control did not diverge: this prompt, model and load cannot show a difference"
)


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing without which a single answer proves nothing."""

    rule: str
    """What ought to hold: one of the names above."""
    sentence: str
    group: Group | None = None
    """None where it concerns the whole run."""


def lacking(analysis: Analysis, groups: Sequence[Group]) -> tuple[Lack, ...]:
    """Everything that `groups` of a run lack; empty where they are evidence."""
    return (
        *_run_complete(analysis),
        *_every_completion(analysis, groups),
        *_batches_observed(groups),
        *_kernels_proven(analysis, groups),
        *_load_varied(analysis, groups),
        *_endpoint_sound(analysis),
    )


def _run_complete(analysis: Analysis) -> Iterator[Lack]:
    run = analysis.run
    if run.complete and run.finished is not None:
        return
    left = sum(record.status != "done" for record in run.conditions)
    error = next((record.error for record in run.conditions if record.error), None)
    cause = f" ({quoted(error, 100)})" if error else ""
    sentence = (
        f"The run is not complete: {left} of {len(run.conditions)} conditions were not measured "
        f"to their end{cause}; `detcheck run --resume` goes on with it."
    )
    if run.complete:
        sentence = "The run was cut off before its summary; `detcheck run --resume` writes it."
    yield Lack(RUN_COMPLETE, sentence)


def _every_completion(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Lack]:
    for group in groups:
        asked = max(group.asked, analysis.run.experiment.completions)
        if group.completions < asked:
            failed = f" ({failures(group)})" if group.failed else ""
            sentence = f"{group.completions:,} of {count(asked, 'completion')} came back{failed}."
            yield Lack(EVERY_COMPLETION, sentence, group)


def _batches_observed(groups: Sequence[Group]) -> Iterator[Lack]:
    for group in groups:
        if not group.evidence.observed:
            sentence = f"The load was not formed as asked: {group.evidence.sentence}."
            yield Lack(BATCHES_OBSERVED, sentence, group)


def _kernels_proven(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Lack]:
    for kernels in dict.fromkeys(
        group.kernels for group in groups if KernelSettings.parse(group.kernels).claims_invariance
    ):
        proof = analysis.run.proofs.get(kernels)
        fault = "the run recorded no proof" if proof is None else proof.fault
        if fault:
            yield Lack(KERNELS_PROVEN, f"Nothing proves that {kernels} was in force: {fault}.")


def _load_varied(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Lack]:
    """Where nothing changed around the request, no answer could have changed."""
    for group in groups:
        if group.completions and not _saw_two_loads(analysis, group):
            asked = dict.fromkeys(row.batch_size for row in group.by_batch_size if row.completions)
            sentence = (
                f"The load never varied (batch size {', '.join(map(str, asked))} only): this check "
                "could not have failed; run several batch sizes, such as -b 1,4,8."
            )
            yield Lack(LOAD_VARIED, sentence, group)
        elif (drowned := _drowned(group)) is not None:
            yield Lack(LOAD_VARIED, drowned, group)


def _endpoint_sound(analysis: Analysis) -> Iterator[Lack]:
    for check in analysis.run.endpoint_checks:
        if check.decisive and check.holds is False:
            yield Lack(ENDPOINT_SOUND, endpoint_sentence(check))


def endpoint_sentence(check: EndpointCheck) -> str:
    """What a failed check of a server says, and where there are several of which."""
    where = f"{check.placement}, " if check.placement else ""
    return f"The endpoint's check failed ({where}{check.name}): {check.sentence}."


def failures(group: Group) -> str:
    """`5 requests failed: 3 timeout, 2 http 5xx`, kinds where the engine tells them."""
    kinds = ", ".join(f"{number:,} {one_line(kind)}" for kind, number in group.failures.items())
    return f"{count(group.failed, 'request')} failed" + (f": {kinds}" if kinds else "")


def _saw_two_loads(analysis: Analysis, group: Group) -> bool:
    """Whether the request of this group was computed under at least two different loads."""
    sizes = {row.batch_size for row in group.by_batch_size if row.completions}
    if len(sizes) > 1:
        return True
    if sizes == {1} or group.completions < 2:
        return False
    return analysis.run.experiment.traffic == "mixed" or _num_observed_loads(analysis, group) > 1


def _drowned(group: Group) -> str | None:
    """Says where so many of somebody else's requests were on a server that ours changed little."""
    means = [
        (row.batch_size, row.observed_rows_mean)
        for row in group.by_batch_size
        if row.observed_rows_mean is not None
    ]
    if len(means) < 2:
        return None
    (smallest, low), (largest, high) = min(means), max(means)
    if low <= SHARED * smallest or high >= DROWNED * low:
        return None
    return (
        f"Somebody else's requests kept the server busy ({low:.3g} were computed together where "
        f"{smallest} was asked for, {high:.3g} where {largest} were): the load hardly varied; ask "
        "for larger batches, or for a server of your own."
    )


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
