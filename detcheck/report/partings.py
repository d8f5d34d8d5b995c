"""Divergences gathered by place: what the reference says there, and what is said instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Divergence, Flip, Group
from detcheck.report.text import same_start


@dataclass(frozen=True, slots=True)
class Instead:
    """What some variants say where they leave the reference."""

    piece: str
    count: int
    """Completions."""
    variants: int
    flip: Flip


@dataclass(frozen=True, slots=True)
class Parting:
    """One place at which variants leave the reference."""

    position: int
    context: str
    reference_piece: str
    instead: tuple[Instead, ...]
    """Most common first."""

    @property
    def count(self) -> int:
        """Completions that leave the reference here."""
        return sum(one.count for one in self.instead)


def partings(group: Group) -> tuple[Parting, ...]:
    """The places where the variants of a group leave its reference, first to last."""
    places: dict[int, list[Divergence]] = {}
    for divergence in group.divergences:
        places.setdefault(divergence.position, []).append(divergence)
    return tuple(_parting(places[position]) for position in sorted(places))


def _parting(found: Sequence[Divergence]) -> Parting:
    by_piece: dict[str, list[Divergence]] = {}
    for divergence in found:
        by_piece.setdefault(divergence.piece, []).append(divergence)
    first = found[0]
    reference, *pieces = same_start([first.reference_piece, *by_piece])
    instead = [
        Instead(piece, sum(d.count for d in same), len(same), same[0].flip)
        for piece, same in zip(pieces, by_piece.values(), strict=True)
    ]
    return Parting(
        position=first.position,
        context=first.context.lstrip(" "),
        reference_piece=reference,
        instead=tuple(sorted(instead, key=lambda one: -one.count)),
    )
