"""The evidence behind a result: what was checked, and whether it held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Analysis, Group
from detcheck.experiment import AS_SERVED, STOCK
from detcheck.report.text import count, number, percent
from detcheck.rundir import KernelsProof

CONTROL_DID_NOT_DIVERGE = (
    "the control did not diverge: this prompt, model and load cannot show a difference"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One piece of evidence."""

    title: str
    """Two or three words."""
    passed: bool | None
    """None where it only informs."""
    sentence: str


def evidence(analysis: Analysis) -> tuple[Check, ...]:
    """Every check of a run, those that decide first."""
    return (
        _batches(analysis.groups),
        _came_back(analysis.groups),
        _finished(analysis),
        *_proofs(analysis),
        *_endpoint(analysis),
        *_prefix_cache(analysis.groups),
        *_control(analysis.groups),
        *_repeats(analysis.groups),
        *_log_probabilities(analysis.groups),
        *_statistics(analysis.groups),
    )


def unsound(analysis: Analysis) -> Check | None:
    """The first check that failed of those without which one answer proves nothing."""
    needed = (
        _batches(analysis.groups),
        _came_back(analysis.groups),
        _finished(analysis),
        *_proofs(analysis),
        *_endpoint(analysis, decisive=True),
    )
    return next((check for check in needed if check.passed is False), None)


def _batches(groups: Sequence[Group]) -> Check:
    unseen = [group for group in groups if not group.evidence.observed]
    if unseen:
        return Check("batches not seen", False, unseen[0].evidence.sentence)
    sentences = dict.fromkeys(group.evidence.sentence for group in groups)
    return Check("batches seen", bool(groups), "; ".join(sentences) or "nothing was measured")


def _came_back(groups: Sequence[Group]) -> Check:
    came, asked = (sum(getattr(g, name) for g in groups) for name in ("completions", "asked"))
    failed = sum(group.failed for group in groups)
    sentence = f"{came:,} of {count(asked, 'completion')} came back"
    if failed:
        sentence += f"; {count(failed, 'request')} failed"
        kinds: Counter[str] = Counter()
        for group in groups:
            kinds.update(group.failures)
        said = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
        sentence += f" ({said})" if said else ""
    retries = sum(row.retries for group in groups for row in group.by_batch_size)
    if retries:
        sentence += f"; {count(retries, 'request')} sent again, nothing generated before"
    complete = came == asked and failed == 0
    return Check("all came back" if complete else "answers missing", complete, sentence)


def _finished(analysis: Analysis) -> Check:
    run = analysis.run
    if run.finished is not None and run.complete:
        return Check("run finished", True, "every condition was measured to its end")
    open_conditions = [record for record in run.conditions if record.status != "done"]
    first = open_conditions[0] if open_conditions else None
    why = f": {first.condition_id} is {first.status}" if first else ""
    why += f" ({first.error})" if first and first.error else ""
    return Check("run unfinished", False, f"the run was not measured to its end{why}")


def _proofs(analysis: Analysis) -> Iterator[Check]:
    for kernels in dict.fromkeys(group.kernels for group in analysis.groups):
        if kernels not in (STOCK, AS_SERVED):
            yield _proof(kernels, analysis.run.proofs.get(kernels))


def _proof(kernels: str, proof: KernelsProof | None) -> Check:
    if proof is None:
        return Check("kernels unproven", False, f"no proof that {kernels} kernels were in force")
    if proof.complete:
        calls = ", ".join(f"{op} {calls:,}" for op, calls in proof.overrides.items() if calls)
        ran = f" ({calls} calls)" if calls else ""
        return Check("kernels proven", True, f"{kernels}: every override ran{ran}")
    missing = f"{', '.join(proof.missing)} never ran" if proof.missing else "its self-check failed"
    if proof.self_check not in (None, "passed"):
        missing += f" (self-check: {proof.self_check})"
    return Check("kernels unproven", False, f"{kernels}: {missing}")


def _endpoint(analysis: Analysis, *, decisive: bool = False) -> Iterator[Check]:
    """What was found out about the servers; only that which a pass needs, where `decisive`."""
    for check in analysis.run.endpoint_checks:
        if check.decisive or not decisive:
            where = f", {check.placement}" if check.placement else ""
            yield Check(f"{check.name}{where}", check.holds, check.sentence)


def _prefix_cache(groups: Sequence[Group]) -> Iterator[Check]:
    for group in groups:
        cache = group.prefix_cache
        if cache is None or cache.first_differs is None:
            continue
        hits = "" if cache.hits is None else f"; {count(cache.hits, 'prompt token')} from the cache"
        if cache.first_differs:
            sentence = f"the first answer differs from all {cache.later} after it{hits}"
            yield Check("first against rest", False, sentence)
        else:
            sentence = f"the first answer came back among the {cache.later} after it{hits}"
            yield Check("first against rest", True, sentence)


def _control(groups: Sequence[Group]) -> Iterator[Check]:
    control = [group for group in groups if group.kernels == STOCK]
    if not control or len(control) == len(groups):
        return
    quiet = [group for group in control if group.distinct <= 1]
    if not quiet:
        yield Check("control diverged", True, "the stock control diverged: the load can show it")
    elif len(quiet) == len(control):
        yield Check("control is silent", False, CONTROL_DID_NOT_DIVERGE)
    else:
        where = f"on {len(quiet)} of {len(control)} prompts "
        yield Check("control diverged in part", None, where + CONTROL_DID_NOT_DIVERGE)


def _repeats(groups: Sequence[Group]) -> Iterator[Check]:
    rows = [row for group in groups for row in group.by_batch_size]
    repeats = [row.exact_repeats_differ for row in rows if row.exact_repeats_differ is not None]
    if not repeats:
        return
    differ = sum(repeats)
    if differ:
        sentence = f"{count(differ, 'completion')} differ in an exact repeat: not the load alone"
        yield Check("repeats differ", False, sentence)
    else:
        sentence = f"exact repeats gave the same answers in {count(len(repeats), 'condition')}"
        yield Check("repeats hold", True, sentence)


def _log_probabilities(groups: Sequence[Group]) -> Iterator[Check]:
    """Equal answers with other log-probabilities: invariance that holds only for now."""
    for group in groups:
        if group.kernels != STOCK and group.logprobs_differ is not None and group.distinct == 1:
            if group.logprobs_differ:
                sentence = (
                    f"{group.kernels}: answers agree, but the log-probabilities of "
                    f"{count(group.logprobs_differ, 'completion')} differ in some bit"
                )
                yield Check("log-probabilities differ", None, sentence)
            else:
                sentence = f"{group.kernels}: log-probabilities agree bit for bit"
                yield Check("bitwise equal", True, sentence)


def _statistics(groups: Sequence[Group]) -> Iterator[Check]:
    for group in groups:
        statistics = group.statistics
        if statistics is None:
            continue
        trials = f"{count(statistics.effective_trials, 'composition')} of load"
        if statistics.effective_trials < 2 and group.distinct == 1:
            sentence = f"{trials} tells nothing about other loads"
        elif statistics.differ_upper_bound is not None:
            bound = f"{number(100 * statistics.differ_upper_bound, 2)}\u00a0%"
            sentence = f"none differed in {trials}: at most {bound} can (95\u00a0% bound)"
        else:
            sentence = (
                f"the variants seen cover {percent(statistics.coverage)} of answers; there are at "
                f"least {statistics.chao1:,.0f} variants, unseen ones included ({trials})"
            )
        yield Check(f"{group.kernels}, prompt {group.prompt_index + 1}", None, sentence)
