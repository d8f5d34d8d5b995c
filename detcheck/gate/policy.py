"""What a gate asks of a run: its limit, the evidence for it, and what is said beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.divergence import two_ways
from detcheck.analysis.evidence import lacking
from detcheck.analysis.results import UNKNOWN, Analysis, Group
from detcheck.gate.notes import (
    Bits,
    EndpointNotes,
    FirstAgainstRest,
    StockControl,
    WhatTheCountSays,
    counted,
)
from detcheck.gate.verdict import FAIL, INCONCLUSIVE, Finding, Rule


@dataclass(frozen=True, slots=True)
class MaxDistinct:
    """Fails a group with more distinct answers than `limit`."""

    limit: int

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for group in groups:
            if group.distinct > self.limit:
                sentence = counted(group) + f", where at most {self.limit} may be: "
                yield Finding("max-distinct", FAIL, sentence + _first_parting(group), group)
            elif 0 < group.completions <= self.limit:
                sentence = (
                    f"{group.completions} completions cannot give more than the {self.limit} "
                    "answers allowed: this check could not have failed."
                )
                yield Finding("max-distinct", INCONCLUSIVE, sentence, group)


@dataclass(frozen=True, slots=True)
class Evidence:
    """No pass where the run lacks what a pass needs."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterator[Finding]:
        for lack in lacking(analysis, groups):
            yield Finding(lack.rule, INCONCLUSIVE, lack.sentence, lack.group)


def rules_for(max_distinct: int | None, *baseline: Rule) -> tuple[Rule, ...]:
    """The rules of a gate; `max_distinct` None sets no limit, `baseline` holds other rules."""
    limit: tuple[Rule, ...] = () if max_distinct is None else (MaxDistinct(max_distinct),)
    notes = (WhatTheCountSays(), StockControl(), Bits(), FirstAgainstRest(), EndpointNotes())
    return (*limit, *baseline, Evidence(), *notes)


def _first_parting(group: Group) -> str:
    first = min(group.divergences, key=lambda divergence: divergence.position)
    ways = two_ways(first.context, first.reference_piece, first.piece)
    kind = first.flip.kind
    why = "no log-probabilities to tell why" if kind == UNKNOWN else kind
    return f"the first to part does so at position {first.position}{ways} ({why})."
