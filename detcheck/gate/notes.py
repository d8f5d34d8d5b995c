"""What is said beside a verdict: rules that decide nothing, and that a reader should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE, endpoint_sentence
from detcheck.analysis.results import Analysis, Group
from detcheck.gate.verdict import NOTE, Finding
from detcheck.kernels.settings import AS_SERVED, STOCK
from detcheck.text import count


@dataclass(frozen=True, slots=True)
class WhatTheCountSays:
    """Says beside a verdict what the count of answers can and cannot exclude."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            sentence = _count_sentence(group)
            if sentence:
                yield Finding("count", NOTE, sentence, group)


@dataclass(frozen=True, slots=True)
class StockControl:
    """Says beside a verdict on other kernels whether stock could show a difference at all."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        control = {group.prompt_index: group for group in analysis.groups if group.kernels == STOCK}
        for group in groups:
            if group.kernels in (STOCK, AS_SERVED):
                continue
            sentence = _control_sentence(control.get(group.prompt_index))
            yield Finding("stock-control", NOTE, sentence, group)


@dataclass(frozen=True, slots=True)
class Bits:
    """Says where answers agree and what is below them does not: they may part on another day."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            if group.kernels != STOCK and group.logprobs_differ:
                sentence = (
                    f"The log-probabilities of {count(group.logprobs_differ, 'completion')} differ "
                    "in some bit from the reference's, though the answer is the same."
                )
                yield Finding("bits", NOTE, sentence, group)
            if group.exact_repeats_differ:
                sentence = (
                    f"{count(group.exact_repeats_differ, 'completion')} differ in an exact repeat "
                    "of their load: the load is not all that changes the answer."
                )
                yield Finding("bits", NOTE, sentence, group)


@dataclass(frozen=True, slots=True)
class FirstAgainstRest:
    """Says where a server's prefix cache, not the load, may have changed the answer."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            cache = group.prefix_cache
            if cache is not None and cache.first_differs:
                hits = f" ({cache.hits:,} prompt tokens came from it)" if cache.hits else ""
                sentence = (
                    f"The first answer, which found no prefix cache, differs from all {cache.later}"
                    f" that followed it under the same load{hits}."
                )
                yield Finding("prefix-cache", NOTE, sentence, group)


@dataclass(frozen=True, slots=True)
class EndpointNotes:
    """Says which checks of the server failed that a verdict does not need."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for check in analysis.run.endpoint_checks:
            if check.holds is False and not check.decisive:
                yield Finding("endpoint-sound", NOTE, endpoint_sentence(check))


def _control_sentence(stock: Group | None) -> str:
    if stock is None:
        return "No stock control was run: nothing shows that this load can make a difference."
    if not stock.completions:
        return "The stock control gave no answer: nothing shows that this load makes a difference."
    if stock.distinct == 1:
        return f"{CONTROL_DID_NOT_DIVERGE.capitalize()} (stock gave {counted(stock)})."
    return f"The stock control gave {counted(stock)} of the same load."


def _count_sentence(group: Group) -> str | None:
    statistics = group.statistics
    if statistics is None:
        return None
    if statistics.differ_upper_bound is not None:
        bound = 100 * statistics.differ_upper_bound
        shown = f"{bound:.0f}" if bound >= 10 else f"{bound:.2g}"
        return (
            f"0 of {group.completions} differed; with 95 % confidence fewer than {shown} % would."
        )
    return (
        f"{counted(group)}; the most common came back {group.most_common} times; an estimated "
        f"{100 * statistics.coverage:.0f} % of answers are of these variants, of which there are "
        f"at least {statistics.chao1:.0f}."
    )


def counted(group: Group) -> str:
    """`2 distinct answers in 48 completions`."""
    answers = count(group.distinct, "distinct answer")
    return f"{answers} in {count(group.completions, 'completion')}"
