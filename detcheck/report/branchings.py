"""Branchings gathered by place: how completions that agreed so far go on in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Branching, Flip, Group
from detcheck.report.text import same_start


@dataclass(frozen=True, slots=True)
class Continuation:
    """How some completions go on that leave the most common branch."""

    piece: str
    """Their next words; empty if they end there."""
    completions: int
    variants: int
    flip: Flip


@dataclass(frozen=True, slots=True)
class BranchingPlace:
    """One place in the prefix tree at which completions go on in several ways."""

    position: int
    seed: int
    context: str
    """The words just before, which all share."""
    common_piece: str
    """The next words of the most common branch; empty if it ends there."""
    common_completions: int
    continuations: tuple[Continuation, ...]
    """The other branches, most common first."""

    @property
    def completions(self) -> int:
        """Completions that leave the most common branch here."""
        return sum(one.completions for one in self.continuations)


def branching_places(group: Group) -> tuple[BranchingPlace, ...]:
    """The places at which the completions of a group diverge, most completions first.

    Completions are those that leave the most common branch.
    """
    # At one position, branchings off the same most common answer are at the same place.
    places: dict[tuple[int, int, int], list[Branching]] = {}
    for branching in group.branchings:
        place = (branching.seed, branching.position, branching.common_rank)
        places.setdefault(place, []).append(branching)
    found = [_place(branchings) for branchings in places.values()]
    return tuple(sorted(found, key=lambda place: (-place.completions, place.position)))


def _place(branchings: Sequence[Branching]) -> BranchingPlace:
    first = branchings[0]
    common, *pieces = same_start([first.common_piece, *(one.piece for one in branchings)])
    continuations = [
        Continuation(piece, one.completions, one.variants, one.flip)
        for piece, one in zip(pieces, branchings, strict=True)
    ]
    return BranchingPlace(
        position=first.position,
        seed=first.seed,
        context=first.context.lstrip(" "),
        common_piece=common,
        common_completions=first.common_completions,
        continuations=tuple(sorted(continuations, key=lambda one: -one.completions)),
    )
