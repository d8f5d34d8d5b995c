"""What a gate asks of a run: its limit, the evidence for it, and what is said beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Analysis, Divergence, Group
from detcheck.gate.evidence import OF_ITSELF, LoadVaried
from detcheck.gate.notes import Bits, FirstAgainstRest, StockControl, WhatTheCountSays, counted
from detcheck.gate.verdict import FAIL, INCONCLUSIVE, Finding, Rule
from detcheck.text import quoted


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


def rules_for(max_distinct: int | None, *baseline: Rule) -> tuple[Rule, ...]:
    """The rules of a gate; `max_distinct` None sets no limit, `baseline` holds other rules."""
    limit: tuple[Rule, ...] = () if max_distinct is None else (MaxDistinct(max_distinct),)
    evidence = (*OF_ITSELF, LoadVaried())
    notes = (WhatTheCountSays(), StockControl(), Bits(), FirstAgainstRest())
    return (*limit, *baseline, *evidence, *notes)


def _first_parting(group: Group) -> str:
    first: Divergence = min(group.divergences, key=lambda divergence: divergence.position)
    after = f", after {quoted(first.context)}" if first.context else ""
    return (
        f"the first to part does so at position {first.position}{after}: "
        f"{_piece(first.reference_piece)} / {_piece(first.piece)} ({_kind(first)})."
    )


def _kind(divergence: Divergence) -> str:
    kind = divergence.flip.kind
    return kind if kind != "unknown" else "no log-probabilities to tell why"


def _piece(piece: str) -> str:
    return quoted(piece) if piece else "the end"
