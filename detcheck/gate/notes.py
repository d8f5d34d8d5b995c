"""Rules that decide nothing: facts that a reader of the verdict should know besides."""

from __future__ import annotations

from collections.abc import Iterator

from detcheck.analysis.evidence import (
    NOTE,
    Finding,
    endpoint_sentence,
    left_out,
    percent_of,
    shared_sentence,
)
from detcheck.analysis.one_text import reads_like_an_error, shared_texts
from detcheck.analysis.results import Group
from detcheck.analysis.statistics import zero_upper_bound
from detcheck.gate.given import GateInput, Rule
from detcheck.gate.options import BITS
from detcheck.kernels.settings import FULLY_INVARIANT, STOCK, KernelSettings
from detcheck.text import count, quoted


def bound_of_the_count(given: GateInput) -> Iterator[Finding]:
    """The rate of other answers that the count can exclude."""
    for group in given.groups:
        if group.statistics is not None:
            yield Finding("count", NOTE, _count_sentence(given, group), group)


def control_beside(given: GateInput) -> Iterator[Finding]:
    """Whether a control was measured, and what it gave. A control that is not alive is a lack."""
    for group in given.groups:
        control = given.control(group)
        if control is None:
            sentence = "No control was measured: nothing shows that this load can change an answer."
            yield Finding("control", NOTE, sentence, group)
        elif control is not group and control.alive:
            sentence = f"The control ({control.kernels}) gave {counted(control)} of the same load"
            if control.distinct_within_seed == 1:
                moved = count(control.logprobs_differ or 0, "completion")
                sentence += f", and the log-probabilities of {moved} moved"
            yield Finding("control", NOTE, f"{sentence}.", group)


def bits_beside(given: GateInput) -> Iterator[Finding]:
    """Equal answers with different log-probabilities, and exact repeats that differ."""
    for group in given.groups:
        judged_by_bits = given.counts(group).level == BITS
        if group.kernels != STOCK and group.logprobs_differ and not judged_by_bits:
            sentence = (
                f"The log-probabilities of {count(group.logprobs_differ, 'completion')} differ in "
                "some bit from the reference's, though the answer is the same: a longer answer may "
                "diverge."
            )
            yield Finding("bits", NOTE, sentence, group)
        if repeats := group.exact_repeats_differ:
            sentence = (
                f"Exact repeats of a load gave {count(repeats, 'other answer')}: the load is not "
                "all that changes the answer."
            )
            yield Finding("bits", NOTE, sentence, group)
        elif repeats := group.repeats_differ:
            sentence = (
                f"The same requests, sent together again, got {count(repeats, 'other answer')}: "
                "equal bursts are not answered alike."
            )
            yield Finding("bits", NOTE, sentence, group)


def prefix_cache_beside(given: GateInput) -> Iterator[Finding]:
    """If a server's prefix cache, not the load, may have changed the answer."""
    for group in given.groups:
        cache = group.prefix_cache
        if cache is not None and cache.first_differs:
            hits = f" ({cache.hits:,} prompt tokens came from it)" if cache.hits else ""
            sentence = (
                f"The first answer, computed without the prefix cache, differs from all "
                f"{cache.later} that followed it under the same load{hits}."
            )
            yield Finding("prefix-cache", NOTE, sentence, group)


def prefix_cache_not_claimed(given: GateInput) -> Iterator[Finding]:
    """If invariant kernels were asked for an invariance that they do not claim."""
    if not given.analysis.run.traits.varies_prefix_cache:
        return
    for group in given.groups:
        settings = KernelSettings.parse(group.kernels)
        claims = settings.claims_prefix_cache or not settings.claims_invariance
        if group.alive and not claims:
            sentence = (
                f"{group.kernels} does not claim that an answer keeps its bits when its prefix "
                f"comes from a cache: use {FULLY_INVARIANT}."
            )
            yield Finding("prefix-cache", NOTE, sentence, group)


def endpoint_beside(given: GateInput) -> Iterator[Finding]:
    """Checks of the server that failed, and that a verdict does not need."""
    for check in given.analysis.run.endpoint_checks:
        if check.holds is False and not check.decisive:
            yield Finding("endpoint-sound", NOTE, endpoint_sentence(check))
    if not given.analysis.run.traits.computes_here:
        yield from _errors_as_answers(given)
    for shared in shared_texts(given.analysis, given.groups):
        if not shared.decisive:
            yield Finding("endpoint-sound", NOTE, shared_sentence(shared))


def budget_beside(given: GateInput) -> Iterator[Finding]:
    """What a budget left out of a run whose prompts all have what a verdict needs."""
    sentence = left_out(given.analysis.run)
    if sentence is not None:
        yield Finding("budget", NOTE, sentence)


def _errors_as_answers(given: GateInput) -> Iterator[Finding]:
    """The most common answer of a group, if it reads like an error of its server."""
    for group in given.groups:
        text = group.variants[0].variant.text.strip() if group.variants else ""
        if reads_like_an_error(text):
            sentence = f"The answer reads like an error of the server: {quoted(text, 80)}."
            yield Finding("endpoint-sound", NOTE, sentence, group)


NOTES: tuple[Rule, ...] = (
    bound_of_the_count,
    control_beside,
    bits_beside,
    prefix_cache_beside,
    prefix_cache_not_claimed,
    endpoint_beside,
    budget_beside,
)


def _count_sentence(given: GateInput, group: Group) -> str:
    statistics = group.statistics
    differing = given.counts(group).differing
    made = group.comparisons
    if not made and group.distinct_within_seed <= 1 and not differing:
        return "No comparison was made: how often answers would differ is not known."
    if not differing or statistics is None:
        others = group.distinct_within_seed
        tokens = f" There are {count(others, 'different answer')} by tokens." if others > 1 else ""
        return (
            f"0 of {count(made, 'comparison')} differed: with 95 % confidence fewer than "
            f"{percent_of(zero_upper_bound(made))} would.{tokens}"
        )
    if group.distinct_within_seed == 1:
        return f"Different in some bit: {differing} of {count(group.completions, 'completion')}."
    times = count(group.most_common, "time")
    return (
        f"{counted(group)}; the most common came back {times}. An estimated "
        f"{100 * statistics.coverage:.0f} % of answers are of these variants, of which there are "
        f"at least {statistics.chao1:.0f}."
    )


def counted(group: Group, distinct: int | None = None) -> str:
    """`2 distinct answers in 48 completions`; those of the group, unless `distinct` is given.

    Of several seeds, those of the seed that has most.
    """
    number = group.distinct_within_seed if distinct is None else distinct
    seeds = f" to one of {len(group.seeds)} {group.sample}s" if len(group.seeds) > 1 else ""
    completions = count(group.completions, "completion")
    return f"{count(number, 'distinct answer')}{seeds} in {completions}"
