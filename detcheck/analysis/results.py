"""The result of an analysis: frozen records that the gate judges and the reports show.

A `Group` holds the findings on one prompt under one kernels setting. Positions are 0-based
completion-token indices, or character indices if a server gave no token ids. Gaps and noise are in
nats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from detcheck.analysis.flip_records import (
    CONFIDENT,
    FLIP_KINDS,
    NEAR_TIE,
    TIE,
    UNKNOWN,
    Branching,
    Divergence,
    Flip,
)
from detcheck.analysis.load_records import (
    BatchEvidence,
    BatchSizeRow,
    PrefixCache,
    Statistics,
    sum_known,
)
from detcheck.kernels.settings import STOCK
from detcheck.rundir import Run, StoredVariant
from detcheck.text import quoted

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CONFIDENT",
    "FLIP_KINDS",
    "NEAR_TIE",
    "TIE",
    "UNKNOWN",
    "Analysis",
    "BatchEvidence",
    "BatchSizeRow",
    "Branching",
    "Divergence",
    "Flip",
    "Group",
    "PrefixCache",
    "SeedSplit",
    "Statistics",
    "TreeNode",
    "VariantCount",
]


@dataclass(frozen=True, slots=True)
class VariantCount:
    """One distinct answer, and how many completions gave it."""

    rank: int
    """1 for the most common."""
    variant: StoredVariant
    count: int
    share: float
    """`count` as a fraction of the group's completions."""
    is_reference: bool
    """True if it is the reference of a seed."""
    first_divergence: int | None
    """Earliest position at which it leaves the reference of a seed under which it came back; None
    for a reference."""
    batch_sizes: tuple[int, ...]
    """Batch sizes under which it was seen, smallest first."""
    seeds: tuple[int, ...] = (0,)
    """Seeds under which it was seen, in the order of the experiment."""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A stretch of text that all completions below it share, then a branching or an end."""

    text: str
    start: int
    """Position of its first token."""
    stop: int
    """One past its last token: the position at which its children diverge."""
    count: int
    """Completions that pass through."""
    variants: int
    """Distinct answers that pass through."""
    children: tuple[TreeNode, ...]
    """Most common first; empty at a leaf."""
    ends: int
    """Completions that end here while others go on."""


@dataclass(frozen=True, slots=True)
class SeedSplit:
    """The completions of one group that asked for one wanted sample."""

    seed: int
    completions: int
    variants: tuple[VariantCount, ...]
    """Most common first; ranks, shares and the reference are within the seed."""
    divergences: tuple[Divergence, ...]
    """One per variant that is not the reference of the seed, most common first."""
    branchings: tuple[Branching, ...]
    """Every branching of the prefix tree of this seed's variants."""

    @property
    def distinct(self) -> int:
        """Number of different answers to this seed."""
        return len(self.variants)

    @property
    def reference(self) -> VariantCount | None:
        """The variant that the others of this seed are compared with; None without completions."""
        return next((variant for variant in self.variants if variant.is_reference), None)


@dataclass(frozen=True, slots=True)
class Group:
    """The findings on one prompt under one kernels setting."""

    prompt_index: int
    prompt: str
    kernels: str
    asked: int
    completions: int
    failed: int
    variants: tuple[VariantCount, ...]
    """Most common first."""
    divergences: tuple[Divergence, ...]
    """One per variant of a seed that is not its reference, seed by seed, most common first."""
    branchings: tuple[Branching, ...]
    """Every branching of the prefix tree of each seed, seed by seed, then by position, then most
    completions first."""
    flips: Mapping[str, int]
    """Branchings by kind; keys are FLIP_KINDS."""
    noise: float | None
    """Measured noise of the gap between the two best logits, pooled over all prompts and
    conditions of these kernels; None if it was not measured (see `noise.Noise`)."""
    logprobs_differ: int | None
    """Completions with the tokens of their seed's reference whose log-probabilities differ in some
    bit; None if the engine gave no log-probabilities."""
    tree: TreeNode | None
    """The prefix tree of all variants, whatever the seed; None if no completion came back."""
    by_batch_size: tuple[BatchSizeRow, ...]
    """Place by place, smallest batch first; over all seeds."""
    statistics: Statistics | None
    """None if no completion came back."""
    evidence: BatchEvidence
    tokens_per_second: float | None
    relative_cost: float | None
    """Time a token against stock on the same loads (total); None for stock or without stock."""
    prefix_cache: PrefixCache | None = None
    """None if the engine keeps no cache between requests."""
    noise_positions: int = 0
    """Token positions, over all prompts of these kernels, at which noise could be seen."""
    by_seed: tuple[SeedSplit, ...] = ()
    """One per seed, in the order of the experiment. References and divergences are within a seed:
    other seeds are other wanted samples."""
    sample: str = "seed"
    """The word for a wanted sample: `seed`, or `choice` if each request asks for several."""
    by_condition: tuple[BatchSizeRow, ...] = ()
    """One per condition: as `by_batch_size`, but each seed by itself."""

    @property
    def failures(self) -> Mapping[str, int]:
        """Failed requests by kind, fillers included; empty if the engine names no kinds."""
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
        """The unit of positions: `token`, or `character` if a server gave no token ids."""
        characters = any(counted.variant.token_ids is None for counted in self.variants)
        return "character" if characters else "token"

    @property
    def distinct(self) -> int:
        """Number of different answers, whatever the seed."""
        return len(self.variants)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were asked for."""
        return tuple(split.seed for split in self.by_seed)

    @property
    def distinct_within_seed(self) -> int:
        """Most different answers to one seed: above 1 only if the system changed an answer."""
        if len(self.by_seed) <= 1:
            return self.distinct
        return max(split.distinct for split in self.by_seed)

    @property
    def answers_from_seeds(self) -> int:
        """Different references of the seeds. Fewer than the seeds: some seeds gave one sample."""
        references = (split.reference for split in self.by_seed)
        return len({one.variant.fingerprint for one in references if one is not None})

    @property
    def answers_from_system(self) -> int:
        """Answers beyond the first to a seed, summed over seeds: nobody asked for these."""
        return sum(max(0, split.distinct - 1) for split in self.by_seed)

    @property
    def most_common(self) -> int:
        """Completions with the most common answer; 0 if no completion came back."""
        return self.variants[0].count if self.variants else 0

    @property
    def reference(self) -> VariantCount | None:
        """The variant that the others are compared with; None if no completion came back.

        The most common of the references if there are several seeds.
        """
        return next((variant for variant in self.variants if variant.is_reference), None)

    @property
    def first_divergence(self) -> int | None:
        """Earliest position at which any variant leaves the reference of its seed."""
        return min((divergence.position for divergence in self.divergences), default=None)

    @property
    def flip_completions(self) -> Mapping[str, int]:
        """Completions that take the less common branch at a branching of each kind.

        Keys are FLIP_KINDS. A completion counts once a branching, so it may count several times.
        """
        completions: Counter[str] = Counter()
        for branching in self.branchings:
            completions[branching.flip.kind] += branching.completions
        return {kind: completions[kind] for kind in FLIP_KINDS}

    @property
    def comparisons(self) -> int:
        """Completions from a batch larger than one that were held against the reference."""
        return 0 if self.statistics is None else self.statistics.comparisons

    @property
    def alive(self) -> bool | None:
        """Whether any load moved anything: another answer, or one bit of a log-probability.

        None if this cannot be told: nothing was compared, or there is one answer and the engine
        gave no log-probabilities.
        """
        if self.distinct_within_seed > 1 or self.logprobs_differ:
            return True
        return None if self.logprobs_differ is None or self.comparisons == 0 else False

    @property
    def exact_repeats_differ(self) -> int | None:
        """Completions that differ in an exact repeat, over all batch sizes; None if not run."""
        return sum_known(row.exact_repeats_differ for row in self.by_batch_size)

    @property
    def repeats_differ(self) -> int | None:
        """Completions of repeated trials whose answer differs, over all batch sizes; of servers
        too. None if no trial was repeated."""
        return sum_known(row.repeats_differ for row in self.by_batch_size)


@dataclass(frozen=True, slots=True)
class Analysis:
    """The meaning of a run."""

    run: Run
    groups: tuple[Group, ...]
    """One per (prompt, kernels), prompts in order, stock before the others. Places are compared
    with each other within a group."""
    agreement: npt.NDArray[np.float64]
    """(conditions, conditions): chance that one completion of each agree; on the diagonal, two
    different completions. NaN across prompts, and if there are no two completions to compare."""
    total_agreement_rate: Mapping[str, float]
    """TARr@N by kernels: share of prompts whose N raw answers to each seed are all equal."""

    @property
    def gaps_perturbed(self) -> bool:
        """True above temperature 0: there gaps are not of logits but of perturbed scores.

        An engine on this machine takes the best of logits / temperature + Gumbel noise, and the
        gaps are differences of these sums. A server does not give such scores, so the kind of its
        flips is unknown above temperature 0.
        """
        return self.run.experiment.temperature > 0

    def frame(self) -> pd.DataFrame:
        """One row a condition; columns and units: `analysis.frames.conditions_frame`."""
        from detcheck.analysis.frames import conditions_frame

        return conditions_frame(self)

    def variants_frame(self) -> pd.DataFrame:
        """One row per (prompt, kernels, variant); columns: `analysis.frames.variants_frame`."""
        from detcheck.analysis.frames import variants_frame

        return variants_frame(self)

    def branchings_frame(self) -> pd.DataFrame:
        """One row a branching; columns and units: `analysis.frames.branchings_frame`."""
        from detcheck.analysis.frames import branchings_frame

        return branchings_frame(self)

    def _repr_html_(self) -> str:
        """The summary, for notebooks."""
        from detcheck.analysis.frames import analysis_html

        return analysis_html(self)

    def group(self, prompt_index: int, kernels: str) -> Group:
        """The group of one prompt and kernels setting; raises KeyError if there is none."""
        for group in self.groups:
            if (group.prompt_index, group.kernels) == (prompt_index, kernels):
                return group
        raise KeyError((prompt_index, kernels))

    def control(self, group: Group) -> Group | None:
        """The stock group of the same prompt in this run; None if there is none, or it is stock."""
        if group.kernels == STOCK:
            return None
        same = (other for other in self.groups if other.prompt_index == group.prompt_index)
        return next((other for other in same if other.kernels == STOCK), None)
