"""The evidence behind a result: what was checked, and whether it held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.evidence import (
    BATCHES_OBSERVED,
    CONTROL_DID_NOT_DIVERGE,
    ENDPOINT_SOUND,
    EVERY_COMPLETION,
    KERNELS_PROVEN,
    LOAD_VARIED,
    RUN_COMPLETE,
    Lack,
    lacking,
)
from detcheck.analysis.results import Analysis, Group
from detcheck.kernels.settings import STOCK, KernelSettings
from detcheck.report.text import number, percent
from detcheck.text import count

TITLES = {
    RUN_COMPLETE: ("run finished", "run unfinished"),
    EVERY_COMPLETION: ("all came back", "answers missing"),
    BATCHES_OBSERVED: ("batches seen", "batches not seen"),
    KERNELS_PROVEN: ("kernels proven", "kernels unproven"),
    LOAD_VARIED: ("load varied", "load never varied"),
    ENDPOINT_SOUND: ("endpoint sound", "endpoint unsound"),
}
"""What a check is called where it holds, and where it does not."""


@dataclass(frozen=True, slots=True)
class Check:
    """One piece of evidence."""

    title: str
    """Two or three words."""
    passed: bool | None
    """None where it is a reservation: it takes nothing back, and limits what is shown."""
    sentence: str


def checks(analysis: Analysis) -> tuple[Check, ...]:
    """Every check of a run: first those that the gate asks for too."""
    return (
        *_evidence(analysis),
        *_endpoint(analysis),
        *_prefix_cache(analysis.groups),
        *_control(analysis.groups),
        *_repeats(analysis.groups),
        *_log_probabilities(analysis.groups),
    )


def bounds(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """(title, sentence) of what the counts can and cannot say of each group."""
    for group in analysis.groups:
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
        yield _label(group), sentence


def batches(analysis: Analysis, between: str = "; ") -> str:
    """What was observed of the batches, each thing said once."""
    return between.join(dict.fromkeys(group.evidence.sentence for group in analysis.groups))


def _evidence(analysis: Analysis) -> Iterator[Check]:
    lacks = lacking(analysis, analysis.groups)
    for rule, sentence in _held(analysis).items():
        found = [lack for lack in lacks if lack.rule == rule]
        good, bad = TITLES[rule]
        yield Check(bad, False, _told(found)) if found else Check(good, True, sentence)


def _told(lacks: Sequence[Lack]) -> str:
    """The first of what one rule found, whose it is, and how many more there are."""
    first = lacks[0]
    whose = f"{_label(first.group)}: " if first.group is not None else ""
    more = f" (and {len(lacks) - 1} more)" if len(lacks) > 1 else ""
    return f"{whose}{first.sentence.rstrip('.')}{more}"


def _label(group: Group) -> str:
    return f"{group.kernels}, prompt {group.prompt_index + 1}"


def _held(analysis: Analysis) -> dict[str, str]:
    """What each rule says where it holds; only those that the run needs."""
    asked = sum(group.asked for group in analysis.groups)
    came = f"{asked:,} of {count(asked, 'completion')} came back{_sent_again(analysis)}"
    sizes = ", ".join(map(str, analysis.run.experiment.batch_sizes))
    decisive = [check for check in analysis.run.endpoint_checks if check.decisive]
    needed = {
        KERNELS_PROVEN: any(
            KernelSettings.parse(group.kernels).claims_invariance for group in analysis.groups
        ),
        ENDPOINT_SOUND: bool(decisive),
    }
    held = {
        RUN_COMPLETE: "every condition was measured to its end",
        EVERY_COMPLETION: came,
        BATCHES_OBSERVED: batches(analysis),
        KERNELS_PROVEN: "; ".join(_calls(analysis)),
        LOAD_VARIED: f"batch sizes {sizes}, {analysis.run.experiment.traffic} traffic",
        ENDPOINT_SOUND: "; ".join(dict.fromkeys(check.sentence for check in decisive)),
    }
    return {rule: sentence for rule, sentence in held.items() if needed.get(rule, True)}


def _sent_again(analysis: Analysis) -> str:
    retries = sum(row.retries for group in analysis.groups for row in group.by_batch_size)
    again = f"; {count(retries, 'request')} sent again, nothing generated before"
    return again if retries else ""


def _calls(analysis: Analysis) -> Iterator[str]:
    """How often each override ran, by kernels setting."""
    for kernels, proof in analysis.run.proofs.items():
        if KernelSettings.parse(kernels).claims_invariance:
            ran = ", ".join(f"{op} {calls:,}" for op, calls in proof.overrides.items() if calls)
            yield f"{kernels}: every op family ran (calls: {ran})"


def _endpoint(analysis: Analysis) -> Iterator[Check]:
    """What was found out about the servers, beyond that which a pass needs."""
    for check in analysis.run.endpoint_checks:
        if not check.decisive:
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
    if len(control) == len(groups):
        return
    quiet = [group for group in control if group.distinct <= 1]
    if not control:
        yield Check("no control", None, "no stock control shows that this load makes a difference")
    elif not quiet:
        yield Check("control diverged", True, "the stock control diverged: the load can show it")
    elif len(quiet) == len(control):
        yield Check("control is silent", None, CONTROL_DID_NOT_DIVERGE)
    else:
        where = f"on {len(quiet)} of {len(control)} prompts "
        yield Check("control diverged in part", None, where + CONTROL_DID_NOT_DIVERGE)


def _repeats(groups: Sequence[Group]) -> Iterator[Check]:
    repeats = [differ for group in groups if (differ := group.exact_repeats_differ) is not None]
    if sum(repeats):
        sentence = f"{count(sum(repeats), 'completion')} differ in an exact repeat"
        yield Check("repeats differ", False, f"{sentence}: not the load alone")
    elif repeats:
        yield Check("repeats hold", True, "exact repeats of a load gave the same answers")


def _log_probabilities(groups: Sequence[Group]) -> Iterator[Check]:
    """Equal answers with other log-probabilities: invariance that holds only for now."""
    for group in groups:
        if group.kernels == STOCK or group.logprobs_differ is None or group.distinct != 1:
            continue
        if group.logprobs_differ:
            sentence = (
                f"{_label(group)}: answers agree, but the log-probabilities of "
                f"{count(group.logprobs_differ, 'completion')} differ in some bit"
            )
            yield Check("log-probabilities differ", None, sentence)
        else:
            sentence = f"{_label(group)}: log-probabilities agree bit for bit"
            yield Check("bitwise equal", True, sentence)
