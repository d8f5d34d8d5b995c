"""What an analysis says: frozen records that the gate judges and the reports show.

A `Group` is everything about one prompt under one kernels setting. Positions are 0-based
completion-token indices (characters where a server gave no token ids).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcheck.rundir import Run, StoredVariant
from detcheck.text import quoted

TIE = "tie"
NEAR_TIE = "near tie"
CONFIDENT = "confident"
UNKNOWN = "unknown"
FLIP_KINDS = (TIE, NEAR_TIE, CONFIDENT, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Flip:
    """Why two variants part where they do."""

    kind: str
    """One of FLIP_KINDS; `unknown` where the engine gave no log-probabilities."""
    reference_gap: float | None
    """The reference's best minus second-best logit at the divergence, in nats."""
    variant_gap: float | None
    """The same of the variant that parted."""
    noise: float | None
    """Change of such gaps between loads, measured in this run before any divergence, in nats."""
    runner_up_won: bool | None
    """Whether the variant's token is the one the reference ranked second."""

    @property
    def gap(self) -> float | None:
        """The gap that decides the kind, in nats: 0 at a tie, else the larger of the two."""
        gaps = [gap for gap in (self.reference_gap, self.variant_gap) if gap is not None]
        return None if not gaps else 0.0 if self.kind == TIE else max(gaps)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where and how one variant leaves the reference."""

    variant: StoredVariant
    count: int
    """Completions with this variant."""
    position: int
    context: str
    """Text both share just before they part."""
    reference_piece: str
    """The next words of the reference; empty where it ends."""
    piece: str
    """The next words of the variant; empty where it ends."""
    flip: Flip


@dataclass(frozen=True, slots=True)
class VariantCount:
    """One distinct answer, and how often it came back."""

    rank: int
    """1 for the most common."""
    variant: StoredVariant
    count: int
    share: float
    is_reference: bool
    first_divergence: int | None
    """Position at which it leaves the reference; None for the reference itself."""
    batch_sizes: tuple[int, ...]
    """Batch sizes under which it was seen."""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A stretch of text that all the completions below it share, then a branch or an end."""

    text: str
    start: int
    """Position of its first token."""
    stop: int
    """One past its last token: where its children part."""
    count: int
    """Completions that pass through."""
    variants: int
    """Distinct completions that pass through."""
    children: tuple[TreeNode, ...]
    """Most common first; empty at a leaf."""
    ends: int
    """Completions that end here while others go on."""


@dataclass(frozen=True, slots=True)
class BatchSizeRow:
    """One condition of a group, summed up."""

    placement: str
    """Where it was computed, such as `endpoint 2`; empty where the grid has only one place."""
    batch_size: int
    asked: int
    completions: int
    failed: int
    distinct: int
    most_common: int
    differ_from_reference: int
    observed_rows_max: int
    """0 where batches were not observed."""
    observed_rows_mean: float | None
    tokens_per_second: float | None
    relative_cost: float | None
    """Time a token against stock at the same batch size; None for stock or without it."""
    exact_repeats_differ: int | None
    """Completions of trial 1, an exact repeat of trial 0, that differ from it; None if not run,
    and for batches that a server forms, which nobody can repeat."""
    failures: Mapping[str, int]
    """Failed requests by kind, fillers included; empty where the engine tells no kinds."""
    retries: int
    """Requests that were sent again since nothing had been generated."""


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """A server's prefix cache as a factor of its own: only the first request of all finds none."""

    first_differs: bool | None
    """Whether the first answer differs from every later one at its batch size; None where there
    were fewer than two later ones."""
    later: int
    """Answers that the first was held against."""
    hits: int | None
    """Prompt tokens that the server took from its cache; None where it does not count them."""


@dataclass(frozen=True, slots=True)
class BatchEvidence:
    """Whether the batches that were asked for were really formed."""

    observed: bool
    """Every batch size that was asked for was seen in full in some forward pass."""
    asked_max: int
    observed_max: int
    sentence: str
    """For a person: `batches of up to 16 of 16 asked, counted over forward passes`."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the counts can and cannot say."""

    coverage: float
    """Good-Turing: estimated share of answers that belong to a variant already seen."""
    chao1: float
    """Chao1: lower bound on the number of variants there are, unseen ones included."""
    differ_upper_bound: float | None
    """95 % upper bound (exact binomial) on the rate of differing answers, where none differed."""
    effective_trials: int
    """Distinct compositions of load behind the counts: exact repeats add nothing."""


@dataclass(frozen=True, slots=True)
class Group:
    """Everything about one prompt under one kernels setting."""

    prompt_index: int
    prompt: str
    kernels: str
    asked: int
    completions: int
    failed: int
    variants: tuple[VariantCount, ...]
    """Most common first."""
    divergences: tuple[Divergence, ...]
    """One per variant that is not the reference, most common first."""
    flips: Mapping[str, int]
    """Divergences by kind; keys are FLIP_KINDS."""
    noise: float | None
    """Measured noise of the top-two gap in nats; None where it was not measured."""
    logprobs_differ: int | None
    """Completions with the reference's tokens whose log-probabilities differ in some bit."""
    tree: TreeNode | None
    """None where nothing came back."""
    by_batch_size: tuple[BatchSizeRow, ...]
    statistics: Statistics | None
    evidence: BatchEvidence
    tokens_per_second: float | None
    relative_cost: float | None
    """Time a token against stock on the same loads (total); None for stock or without it."""
    prefix_cache: PrefixCache | None = None
    """None where the engine keeps none between requests."""

    @property
    def failures(self) -> Mapping[str, int]:
        """Failed requests by kind, fillers included; empty where the engine tells no kinds."""
        total: Counter[str] = Counter()
        for row in self.by_batch_size:
            total.update(row.failures)
        return total

    @property
    def name(self) -> str:
        """`prompt 1 "Tell me about…" [batch-invariant]`."""
        return f"prompt {self.prompt_index + 1} {quoted(self.prompt)} [{self.kernels}]"

    @property
    def unit(self) -> str:
        """What positions count: `token`, or `character` where a server gave no token ids."""
        characters = any(counted.variant.token_ids is None for counted in self.variants)
        return "character" if characters else "token"

    @property
    def distinct(self) -> int:
        """How many different answers came back."""
        return len(self.variants)

    @property
    def most_common(self) -> int:
        """Completions with the most common answer; 0 where nothing came back."""
        return self.variants[0].count if self.variants else 0

    @property
    def reference(self) -> VariantCount | None:
        """The variant the others are compared with; None where nothing came back."""
        return next((variant for variant in self.variants if variant.is_reference), None)

    @property
    def first_divergence(self) -> int | None:
        """Earliest position at which any variant leaves the reference."""
        return min((divergence.position for divergence in self.divergences), default=None)

    @property
    def exact_repeats_differ(self) -> int | None:
        """Completions that differ in an exact repeat, over all batch sizes; None if not run."""
        rows = (row.exact_repeats_differ for row in self.by_batch_size)
        known = [differ for differ in rows if differ is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Analysis:
    """The meaning of a run."""

    run: Run
    groups: tuple[Group, ...]
    """One per (prompt, kernels), prompts in order, stock before the others. Places are compared
    with each other within a group."""
    agreement: npt.NDArray[np.float64]
    """(conditions, conditions): chance that one completion of each agree; on the diagonal, two
    different ones. NaN across prompts, and where there are no two to compare."""
    total_agreement_rate: Mapping[str, float]
    """TARr@N by kernels: share of prompts whose N raw answers are all equal."""

    def group(self, prompt_index: int, kernels: str) -> Group:
        """The group of one prompt and kernels setting; raises KeyError where there is none."""
        for group in self.groups:
            if (group.prompt_index, group.kernels) == (prompt_index, kernels):
                return group
        raise KeyError((prompt_index, kernels))
