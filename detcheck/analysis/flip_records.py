"""The records of flips: where branches diverge, and why. Import them from `analysis.results`."""

from __future__ import annotations

from dataclasses import dataclass

from detcheck.rundir import StoredVariant

TIE = "tie"
NEAR_TIE = "near tie"
CONFIDENT = "confident"
UNKNOWN = "unknown"
FLIP_KINDS = (TIE, NEAR_TIE, CONFIDENT, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Flip:
    """Why two branches of the prefix tree diverge.

    Each branch is represented by one variant: the most common one that passes through it, or the
    one with the widest gap if rounding cannot explain that gap (see `flips.representative`).
    """

    kind: str
    """One of FLIP_KINDS; `unknown` if the engine gave no log-probabilities or no noise was
    measured."""
    reference_gap: float | None
    """Best minus second-best logit at the divergence in the branch that the other is held against:
    the reference's in a `Divergence`, the more common one in a `Branching`. None: not known."""
    variant_gap: float | None
    """The same in the branch that diverges from it. None: not known."""
    noise: float | None
    """By how much loads move such gaps, as measured in this run; None if it was not measured."""
    runner_up_won: bool | None
    """True if the diverging token is the one that the other branch ranked second."""

    @property
    def gap(self) -> float | None:
        """The gap that decides the kind: 0 at a tie, else the larger of the two."""
        gaps = [gap for gap in (self.reference_gap, self.variant_gap) if gap is not None]
        return None if not gaps else 0.0 if self.kind == TIE else max(gaps)


@dataclass(frozen=True, slots=True)
class Branching:
    """One branch of the prefix tree leaves the more common branch beside it.

    A node with k branches holds k - 1 branchings, so a tree of n variants holds n - 1. Answers that
    end at a node while others go on are a branch too.
    """

    position: int
    context: str
    """Text that both branches share just before they diverge."""
    common_piece: str
    """The next words of the more common branch; empty if it ends here."""
    piece: str
    """The next words of the other branch; empty if it ends here."""
    common_completions: int
    """Completions that take the more common branch."""
    completions: int
    """Completions that take the other branch."""
    variants: int
    """Distinct answers that take the other branch."""
    common_rank: int
    """`VariantCount.rank`, within the seed, of the most common answer of the more common branch."""
    rank: int
    """The same of the other branch."""
    flip: Flip
    """Its `reference_gap` is of the more common branch, its `variant_gap` of the other."""
    seed: int = 0
    """Seed of the answers."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Place and kind of one variant's divergence from the reference."""

    variant: StoredVariant
    count: int
    """Completions with this variant."""
    position: int
    context: str
    """Text that both share just before they diverge."""
    reference_piece: str
    """The next words of the reference; empty if it ends here."""
    piece: str
    """The next words of the variant; empty if it ends here."""
    flip: Flip
    """Of the branch that leaves the reference here, so variants that leave it together share it."""
    seed: int = 0
    """Seed of the answers."""
