"""The evidence that a run lacks. If it lacks anything, no gate passes it and no report trusts it.

Each fact is stated once, here, so that the gate's verdict and the report's cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detcheck.analysis.batches import SHARED
from detcheck.analysis.one_text import SharedText, shared_texts
from detcheck.analysis.results import Analysis, Group
from detcheck.analysis.statistics import zero_upper_bound
from detcheck.evidence import MIN_COMPARISONS, EndpointCheck
from detcheck.grid import sequences_per_trial
from detcheck.kernels.settings import AS_SERVED, STOCK, KernelSettings
from detcheck.rundir import ENOUGH, Run
from detcheck.text import count, one_line, quoted, verb

FAIL = "fail"
INCONCLUSIVE = "inconclusive"
NOTE = "note"
"""A finding that decides nothing but that a reader of the verdict should know."""

MEASURED = "measured"
RUN_COMPLETE = "run-complete"
EVERY_COMPLETION = "every-completion"
BATCHES_OBSERVED = "batches-observed"
KERNELS_PROVEN = "kernels-proven"
LOAD_VARIED = "load-varied"
ENOUGH_COMPARISONS = "enough-comparisons"
CONTROL_ALIVE = "control-alive"
ENDPOINT_SOUND = "endpoint-sound"

MOST_NAMED = 5
"""Prompts that a sentence names."""
BUSY = 2.0
"""On a server that others use too, the largest batches must be so many times the smallest."""
CONTROL_DID_NOT_DIVERGE = (
    "the control did not diverge: this prompt, model and load cannot show a difference"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to report of one group, or of the whole run."""

    rule: str
    """The rule that reports it, such as `run-complete`."""
    effect: str
    """`fail`, `inconclusive` or `note`."""
    sentence: str
    group: Group | None = None
    """None if it concerns the whole run."""


def lacking(
    analysis: Analysis,
    groups: Sequence[Group],
    *,
    min_comparisons: int = MIN_COMPARISONS,
    control: Analysis | None = None,
) -> tuple[Finding, ...]:
    """Everything that `groups` of a run lack as evidence; empty if they lack nothing.

    Each finding is inconclusive. `control` is the analysis of another run whose stock kernels (or
    server) are the control; None takes the stock groups of this run.
    """
    return (
        *_measured(analysis),
        *_run_complete(analysis),
        *_every_completion(analysis, groups),
        *_batches_observed(groups),
        *_kernels_proven(analysis, groups),
        *_load_varied(analysis, groups),
        *_enough_comparisons(analysis, groups, min_comparisons),
        *_control_alive(analysis, groups, control),
        *_endpoint_sound(analysis, groups),
    )


def control_of(analysis: Analysis, group: Group, control: Analysis | None = None) -> Group | None:
    """The control of a group: stock kernels (or a server) on the same prompt.

    It is looked for in `control`, the analysis of another run, if that is given. Stock is its own
    control. None if there is no control.
    """
    groups = analysis.groups if control is None else control.groups
    names = (STOCK,) if control is None else (STOCK, AS_SERVED)
    same = {other.kernels: other for other in groups if other.prompt == group.prompt}
    return next((same[name] for name in names if name in same), None)


def _lack(rule: str, sentence: str, group: Group | None = None) -> Finding:
    return Finding(rule, INCONCLUSIVE, sentence, group)


def _measured(analysis: Analysis) -> Iterator[Finding]:
    if analysis.run.traits.planted:
        sentence = "The answers were planted for a test: nothing was measured."
        yield _lack(MEASURED, sentence)


def _run_complete(analysis: Analysis) -> Iterator[Finding]:
    run = analysis.run
    if run.complete and run.finished is not None:
        return
    if run.budget_s is not None and run.can_go_on and not run.complete:
        yield _lack(RUN_COMPLETE, _out_of_time(run))
        return
    left = sum(record.status not in ("done", ENOUGH) for record in run.conditions)
    error = next((record.error for record in run.conditions if record.error), None)
    cause = f" ({quoted(error, 100)})" if error else ""
    sentence = (
        f"The run is not complete: {left} of {count(len(run.conditions), 'condition')} "
        f"{verb(left, 'was', 'were')} not measured "
        f"to their end{cause}. Resume it."
    )
    if run.complete:
        sentence = "The run was cut off before its summary. Resume it."
    yield _lack(RUN_COMPLETE, sentence)


def _out_of_time(run: Run) -> str:
    """The sentence about a budget that ended before every prompt had what a verdict needs."""
    short = {r.prompt_index for r in run.conditions if r.status not in ("done", ENOUGH)}
    named = ", ".join(
        quoted(run.experiment.prompts[index], 60) for index in sorted(short)[:MOST_NAMED]
    )
    more = f" and {len(short) - MOST_NAMED} more" if len(short) > MOST_NAMED else ""
    of = f"{len(short)} of {count(len(run.experiment.prompts), 'prompt')}"
    return (
        f"The time of {run.budget_s:g} seconds ended before {of} had what a verdict needs: "
        f"{named}{more}. Resume it, or give it more time."
    )


def left_out(run: Run) -> str | None:
    """What a budget left out of a run whose prompts all have what a verdict needs, as a sentence.

    None if it left nothing out, or the run is not complete.
    """
    cut = [record for record in run.conditions if record.status == ENOUGH]
    if run.budget_s is None or not cut or not run.complete:
        return None
    left = sum(record.asked - record.due for record in cut)
    prompts = len({record.prompt_index for record in cut})
    asked = sum(record.asked for record in run.conditions)
    return (
        f"The time of {run.budget_s:g} seconds ended before {left:,} of "
        f"{count(asked, 'completion')} were measured, of {count(prompts, 'prompt')}. Each of these "
        "has the least that a verdict needs, and all bounds are those of the completions that were "
        "made."
    )


def _every_completion(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
    for group in groups:
        asked = group.asked
        if analysis.run.budget_s is None:  # a record cannot ask for less than the experiment
            asked = max(asked, analysis.run.experiment.completions * analysis.run.traits.choices)
        if group.completions < asked:
            failed = f" ({failures(group)})" if group.failed else ""
            sentence = f"{group.completions:,} of {count(asked, 'completion')} came back{failed}."
            if failed and analysis.run.complete:
                sentence += " Failed requests are not sent again: measure anew."
            yield _lack(EVERY_COMPLETION, sentence, group)


def _batches_observed(groups: Sequence[Group]) -> Iterator[Finding]:
    for group in groups:
        if not group.evidence.observed and not _unmeasured(group):
            sentence = f"The load was not formed as asked: {group.evidence.sentence}."
            yield _lack(BATCHES_OBSERVED, sentence, group)


def _kernels_proven(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
    for kernels in dict.fromkeys(group.kernels for group in groups):
        if not KernelSettings.parse(kernels).claims_invariance:
            continue
        proof = analysis.run.proofs.get(kernels)
        fault = "the run recorded no proof" if proof is None else proof.fault
        if fault:
            yield _lack(KERNELS_PROVEN, f"Nothing proves that {kernels} was in force: {fault}.")


def _load_varied(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
    """If nothing changed around the request, no answer could have changed."""
    for group in groups:
        if _unmeasured(group):
            continue
        if group.completions and not _two_loads(analysis, group):
            asked = dict.fromkeys(row.batch_size for row in group.by_batch_size if row.completions)
            sentence = (
                f"The load never varied (batch size {', '.join(map(str, asked))} only): this check "
                "could not have failed. Run several batch sizes, such as 1, 4 and 8."
            )
            yield _lack(LOAD_VARIED, sentence, group)
        elif (busy := _busy(analysis.run, group)) is not None:
            yield _lack(LOAD_VARIED, busy, group)


def _enough_comparisons(
    analysis: Analysis, groups: Sequence[Group], needed: int
) -> Iterator[Finding]:
    """If the load never varied, that finding is enough: there were no comparisons at all."""
    for group in groups:
        made = group.comparisons
        if made >= needed or not group.completions or not _two_loads(analysis, group):
            continue
        bound = percent_of(zero_upper_bound(made))
        sentence = (
            f"Only {count(made, 'comparison')} under a batch larger than one, and a pass needs "
            f"{needed}: up to {bound} of answers could differ unseen (95 % bound). Ask for more "
            f"completions{_repeats_in_words(group)}."
        )
        yield _lack(ENOUGH_COMPARISONS, sentence, group)


def _repeats_in_words(group: Group) -> str:
    """How many completions of larger batches are no comparisons; empty if all are."""
    batched = sum(row.completions for row in group.by_batch_size if row.batch_size > 1)
    alone = any(row.batch_size == 1 and row.completions for row in group.by_batch_size)
    repeats = batched - group.comparisons - (0 if alone else 1)  # one may be the reference
    if repeats <= 0:
        return ""
    return f"; {count(repeats, 'completion')} of larger batches only repeated a load exactly"


def _control_alive(
    analysis: Analysis, groups: Sequence[Group], other: Analysis | None
) -> Iterator[Finding]:
    for group in groups:
        control = control_of(analysis, group, other)
        if control is None or not group.completions or control.alive:
            continue
        if control.completions < control.asked:
            sentence = (
                f"The control is not complete: {control.completions:,} of "
                f"{count(control.asked, 'completion')} of {control.kernels} came back, and they "
                "show no difference."
            )
            yield _lack(CONTROL_ALIVE, sentence, group)
            continue
        found = "gave one answer, and not one bit of its log-probabilities moved"
        if control.logprobs_differ is None:
            found = "gave one answer and no log-probabilities"
        sentence = (
            f"The control shows nothing: {control.kernels} {found} under this load, so a fault "
            "could not have been seen. Ask for longer answers or larger batches."
        )
        yield _lack(CONTROL_ALIVE, sentence, group)


def _endpoint_sound(analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
    for check in analysis.run.endpoint_checks:
        if check.decisive and check.holds is False:
            yield _lack(ENDPOINT_SOUND, endpoint_sentence(check))
    for shared in shared_texts(analysis, groups):
        if shared.decisive:
            yield _lack(ENDPOINT_SOUND, shared_sentence(shared))


def shared_sentence(shared: SharedText) -> str:
    """One answer of a server to several prompts, as a sentence."""
    return (
        f"{shared.prompts} different prompts got one answer ({quoted(shared.text, 60)}): the "
        "server may not have answered what it was asked."
    )


def endpoint_sentence(check: EndpointCheck) -> str:
    """A failed check of a server as a sentence, which names the server if there are several."""
    server = f"{check.placement}, " if check.placement else ""
    return f"The endpoint's check failed ({server}{check.name}): {check.sentence}."


def failures(group: Group) -> str:
    """`5 requests failed: 3 timeout, 2 http 5xx`; without kinds if the engine names none."""
    kinds = ", ".join(f"{number:,} {one_line(kind)}" for kind, number in group.failures.items())
    return f"{count(group.failed, 'request')} failed" + (f": {kinds}" if kinds else "")


def percent_of(rate: float) -> str:
    """A rate as `14 %` or `0.34 %`."""
    percent = 100 * rate
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _unmeasured(group: Group) -> bool:
    """True if no larger batch came back though some were asked for: no other lack tells more.

    `_every_completion` names such a group.
    """
    rows = [row for row in group.by_batch_size if row.batch_size > 1]
    missing = group.completions < group.asked
    return missing and bool(rows) and not any(row.completions for row in rows)


def _two_loads(analysis: Analysis, group: Group) -> bool:
    """True if the prompt of this group was computed under at least two different loads."""
    sizes = {row.batch_size for row in group.by_batch_size if row.completions}
    if len(sizes) > 1:
        return True
    if sizes == {1} or group.completions < 2:
        return False
    return analysis.run.experiment.traffic == "mixed" or _num_observed_loads(analysis, group) > 1


def _busy(run: Run, group: Group) -> str | None:
    """A sentence if other clients' requests were most of a server's load; None otherwise."""
    means = [
        (row.batch_size, row.observed_rows_mean)
        for row in group.by_batch_size
        if row.observed_rows_mean is not None
    ]
    if len(means) < 2:
        return None
    (smallest, low), (largest, high) = min(means), max(means)
    sent = sequences_per_trial(smallest, run.experiment.traffic, run.traits.choices)
    if low <= SHARED * sent or high >= BUSY * low:
        return None
    return (
        f"Other clients' requests kept the server busy ({low:.3g} were computed together when "
        f"{smallest} was asked for, {high:.3g} when {largest} were), so the load hardly varied. "
        "Ask for larger batches, or use a server of your own."
    )


def _num_observed_loads(analysis: Analysis, group: Group) -> int:
    """How many different batches the completions of a group were observed in."""
    run = analysis.run
    conditions = [
        index
        for index, record in enumerate(run.conditions)
        if (record.prompt_index, record.kernels) == (group.prompt_index, group.kernels)
    ]
    rows = np.isin(run.completions.condition, conditions) & (run.completions.rows_max > 0)
    observed = np.stack(
        [
            run.completions.rows_max[rows],
            run.completions.rows_mean[rows],
            run.completions.query_tokens_max[rows],
        ]
    )
    return int(np.unique(observed, axis=1).shape[1])
