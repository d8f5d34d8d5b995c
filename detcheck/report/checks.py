"""The evidence behind a result: which checks were made, and whether they held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.evidence import (
    BATCHES_OBSERVED,
    CONTROL_ALIVE,
    ENDPOINT_SOUND,
    ENOUGH_COMPARISONS,
    EVERY_COMPLETION,
    KERNELS_PROVEN,
    LOAD_VARIED,
    MEASURED,
    RUN_COMPLETE,
    Finding,
    lacking,
    left_out,
)
from detcheck.analysis.results import Analysis, Group, Statistics
from detcheck.kernels.settings import STOCK, KernelSettings
from detcheck.report.text import number, percent, traffic_words
from detcheck.text import count, verb

TITLES = {
    MEASURED: ("measured", "answers were planted"),
    RUN_COMPLETE: ("run finished", "run unfinished"),
    EVERY_COMPLETION: ("all came back", "answers missing"),
    BATCHES_OBSERVED: ("batches seen", "batches not seen"),
    KERNELS_PROVEN: ("kernels proven", "kernels unproven"),
    LOAD_VARIED: ("load varied", "load never varied"),
    ENOUGH_COMPARISONS: ("enough comparisons", "too few comparisons"),
    CONTROL_ALIVE: ("control is alive", "control is not alive"),
    ENDPOINT_SOUND: ("endpoint sound", "endpoint unsound"),
}
"""The title of a check if it holds, and if it does not."""


@dataclass(frozen=True, slots=True)
class TrustCheck:
    """One check of the evidence."""

    title: str
    """Two or three words."""
    passed: bool | None
    """None for a reservation: it limits what is shown, and takes nothing back."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Bound:
    """The limits of the counts of one prompt and kernels setting."""

    kernels: str
    sentence: str


def trust_checks(analysis: Analysis) -> tuple[TrustCheck, ...]:
    """Every check of a run; those that the gate asks for come first."""
    return (
        *_evidence(analysis),
        *_endpoint(analysis),
        *_prefix_cache(analysis.groups),
        *_control(analysis.groups),
        *_repeats(analysis.groups),
        *_log_probabilities(analysis.groups),
    )


def doubt_about(analysis: Analysis, groups: Sequence[Group]) -> str:
    """Two or three words on the first thing that `groups` lack as evidence; empty if nothing."""
    lacks = lacking(analysis, groups)
    return TITLES[lacks[0].rule][1] if lacks else ""


def bounds(groups: Sequence[Group]) -> tuple[Bound, ...]:
    """The statistical bounds of each group that has any completions."""
    return tuple(
        Bound(group.kernels, _bound(group, group.statistics))
        for group in groups
        if group.statistics is not None
    )


def _bound(group: Group, statistics: Statistics) -> str:
    loads = f"{count(statistics.effective_trials, 'composition')} of load"
    if statistics.effective_trials < 2 and group.distinct_within_seed == 1:
        return f"{loads}: too few to say anything about other loads"
    if not statistics.comparisons:
        return f"{loads}: no comparison was made"
    if statistics.differ_upper_bound is not None:
        bound = f"{number(100 * statistics.differ_upper_bound, 2)}\u00a0%"
        comparisons = count(statistics.comparisons, "comparison")
        return f"0 of {comparisons} differed ({loads}): at most {bound} can (95\u00a0% bound)"
    return (
        f"the variants seen cover {percent(statistics.coverage)} of answers; there are at "
        f"least {statistics.chao1:,.0f} variants, unseen ones included ({loads})"
    )


def batches(analysis: Analysis, between: str = "; ") -> str:
    """Observations of the batches, each sentence once."""
    return between.join(dict.fromkeys(group.evidence.sentence for group in analysis.groups))


def _evidence(analysis: Analysis) -> Iterator[TrustCheck]:
    lacks = lacking(analysis, analysis.groups)
    held = _held(analysis)
    for rule, (good, bad) in TITLES.items():
        found = [lack for lack in lacks if lack.rule == rule]
        if found:
            yield TrustCheck(bad, False, _missing(found))
        elif rule in held:
            yield TrustCheck(good, True, held[rule])


def _missing(lacks: Sequence[Finding]) -> str:
    """The first finding of one rule, the group that it is about, and how many more there are."""
    first = lacks[0]
    whose = f"{_label(first.group)}: " if first.group is not None else ""
    more = f" (and {len(lacks) - 1} more)" if len(lacks) > 1 else ""
    return f"{whose}{first.sentence.rstrip('.')}{more}"


def _label(group: Group) -> str:
    return f"{group.kernels}, prompt {group.prompt_index + 1}"


def _labels(groups: Sequence[Group]) -> str:
    """`batch-invariant, prompt 3`, or `batch-invariant, 12 prompts`."""
    if len(groups) == 1:
        return _label(groups[0])
    kernels = ", ".join(dict.fromkeys(group.kernels for group in groups))
    return f"{kernels}, {count(len({group.prompt_index for group in groups}), 'prompt')}"


def _held(analysis: Analysis) -> dict[str, str]:
    """The sentence of each rule if it holds; only the rules that the run needs."""
    asked = sum(group.asked for group in analysis.groups)
    came = f"{asked:,} of {count(asked, 'completion')} came back{_sent_again(analysis)}"
    sizes = ", ".join(map(str, analysis.run.experiment.batch_sizes))
    decisive = [check for check in analysis.run.endpoint_checks if check.decisive]
    traffic = traffic_words(analysis.run.experiment.traffic)
    fewest = min((group.comparisons for group in analysis.groups), default=0)
    needed = {
        CONTROL_ALIVE: any(group.kernels == STOCK for group in analysis.groups),
        KERNELS_PROVEN: any(
            KernelSettings.parse(group.kernels).claims_invariance for group in analysis.groups
        ),
        ENDPOINT_SOUND: bool(decisive),
        ENOUGH_COMPARISONS: fewest > 0,
    }
    held = {
        RUN_COMPLETE: left_out(analysis.run) or "every condition was measured to its end",
        EVERY_COMPLETION: came,
        BATCHES_OBSERVED: batches(analysis),
        KERNELS_PROVEN: "; ".join(_calls(analysis)),
        LOAD_VARIED: f"batch sizes {sizes}, batches of {traffic}",
        ENOUGH_COMPARISONS: f"at least {count(fewest, 'comparison')} for each prompt",
        CONTROL_ALIVE: "stock gave other answers, or other log-probabilities, under the load",
        ENDPOINT_SOUND: "; ".join(dict.fromkeys(check.sentence for check in decisive)),
    }
    return {rule: sentence for rule, sentence in held.items() if needed.get(rule, True)}


def _sent_again(analysis: Analysis) -> str:
    retries = sum(row.retries for group in analysis.groups for row in group.by_batch_size)
    again = f"; {count(retries, 'request')} sent again, nothing generated before"
    return again if retries else ""


def _calls(analysis: Analysis) -> Iterator[str]:
    """How often each override ran, a phrase for each kernels setting."""
    for kernels, proof in analysis.run.proofs.items():
        if KernelSettings.parse(kernels).claims_invariance:
            ran = ", ".join(f"{op} {calls:,}" for op, calls in proof.overrides.items() if calls)
            packed = f"; packed weights take {proof.packed_bytes / 1e6:,.0f} MB"
            memory = packed if proof.packed_bytes else ""
            yield f"{kernels}: every op family ran (calls: {ran}){memory}"


def _endpoint(analysis: Analysis) -> Iterator[TrustCheck]:
    """The checks of the servers that a pass does not need."""
    for check in analysis.run.endpoint_checks:
        if not check.decisive:
            where = f", {check.placement}" if check.placement else ""
            yield TrustCheck(f"{check.name}{where}", check.holds, check.sentence)


def _prefix_cache(groups: Sequence[Group]) -> Iterator[TrustCheck]:
    """The first answer, computed without a prefix cache, against those that follow it."""
    compared = [
        (group, cache)
        for group in groups
        if (cache := group.prefix_cache) is not None and cache.first_differs is not None
    ]
    counted = [cache.hits for _, cache in compared if cache.hits is not None]
    hits = f"; {count(sum(counted), 'prompt token')} from the cache" if counted else ""
    differ = [(group, cache) for group, cache in compared if cache.first_differs]
    if differ:
        group, cache = differ[0]
        more = f" (and on {count(len(differ) - 1, 'more prompt')})" if len(differ) > 1 else ""
        sentence = f"{_label(group)}: the first answer differs from all {cache.later} after it"
        yield TrustCheck("first against rest", False, sentence + more + hits)
    elif compared:
        later = compared[0][1].later
        sentence = f"the first answer came back among the {later:,} after it{hits}"
        if len(compared) > 1:
            sentence = f"on every prompt, the first answer came back among those after it{hits}"
        yield TrustCheck("first against rest", True, sentence)


def _control(groups: Sequence[Group]) -> Iterator[TrustCheck]:
    """A run without stock kernels has no control. Whether a control is alive is evidence."""
    if all(group.kernels != STOCK for group in groups):
        yield TrustCheck(
            "no control", None, "no stock control shows that this load makes a difference"
        )


def _repeats(groups: Sequence[Group]) -> Iterator[TrustCheck]:
    """Exact repeats of a load; of servers, whose batches vary, the same requests sent again."""
    exact = [differ for group in groups if (differ := group.exact_repeats_differ) is not None]
    again = [differ for group in groups if (differ := group.repeats_differ) is not None]
    if differ := sum(exact):
        sentence = f"{count(differ, 'completion')} {verb(differ, 'differs', 'differ')}"
        cause = "the load alone does not explain this"
        yield TrustCheck("repeats differ", False, f"{sentence} in an exact repeat: {cause}")
    elif differ := sum(again):
        sentence = f"the same requests, sent together again, got {count(differ, 'other answer')}"
        yield TrustCheck("repeats differ", False, sentence)
    elif exact:
        sentence = "exact repeats of a load gave the same answers"
        yield TrustCheck("repeats hold", True, sentence)
    elif again:
        sentence = "the same requests, sent together again, got the same answers"
        yield TrustCheck("repeats hold", True, sentence)


def _log_probabilities(groups: Sequence[Group]) -> Iterator[TrustCheck]:
    """Equal answers with different log-probabilities: they may diverge on a longer output."""
    judged = [
        group
        for group in groups
        if group.kernels != STOCK
        and group.logprobs_differ is not None
        and group.distinct_within_seed == 1
    ]
    differ = [group for group in judged if group.logprobs_differ]
    if differ:
        number_of = sum(group.logprobs_differ or 0 for group in differ)
        sentence = (
            f"{_labels(differ)}: answers agree, but the log-probabilities of "
            f"{count(number_of, 'completion')} differ in some bit"
        )
        yield TrustCheck("log-probabilities differ", None, sentence)
    elif judged:
        sentence = f"{_labels(judged)}: log-probabilities agree bit for bit"
        yield TrustCheck("bitwise equal", True, sentence)
