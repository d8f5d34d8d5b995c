"""The records of parsed answers, and their statistics. Import them from `analysis.answers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from detcheck.text import amount, count


@dataclass(frozen=True, slots=True)
class AnswerCount:
    """One parsed answer to an item."""

    answer: str | None
    """None: the parser found none."""
    completions: int
    batch_sizes: tuple[int, ...]
    """Batch sizes under which it came back, smallest first."""
    example: str
    """The text of the first completion that gave it."""


@dataclass(frozen=True, slots=True)
class AnsweredItem:
    """One prompt under one kernels setting, its completions parsed."""

    prompt_index: int
    prompt: str
    expected: str | None
    """The right answer, parsed as well; None if it is not known."""
    answers: tuple[AnswerCount, ...]
    """Most common first; empty if no completion came back."""
    distinct_within_seed: int
    """Most parsed answers to one seed; 0 if no completion came back."""
    raw_distinct_within_seed: int
    """Most distinct completions of one seed, unparsed."""
    div_index: int | None
    """First position at which two completions of a seed differ; None if all are equal."""
    correct_share: Mapping[int, float]
    """Share of right answers by batch size, of those that answered; empty without `expected`."""
    top1_std: float | None = None
    """Standard deviation over loads of the best token's probability, averaged over the positions
    0 to `div_index`; None if fewer than two loads gave log-probabilities."""
    id: str | None = None
    """Its name in the prompts file."""

    @property
    def flips(self) -> bool:
        """True if the parsed answer to one seed changed."""
        return self.distinct_within_seed > 1

    @property
    def flips_unseen(self) -> bool:
        """Whether its texts differ and no answer was found in any: it may flip unnoticed."""
        unparsed = all(count.answer is None for count in self.answers)
        return unparsed and self.raw_distinct_within_seed > 1

    @property
    def name(self) -> str:
        """Its id; `prompt 3` if it has none."""
        return self.id if self.id is not None else f"prompt {self.prompt_index + 1}"


@dataclass(frozen=True, slots=True)
class LoadAccuracy:
    """The accuracy at one batch size: mean over items of the share of right answers."""

    batch_size: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class AnswerStability:
    """How far the load changes the answers under one kernels setting. Shares are of 1."""

    kernels: str
    items: tuple[AnsweredItem, ...]
    """Items with completions, in the order of the prompts."""
    completions: int
    unparsed: int
    """Completions that the parser found no answer in."""
    unparsed_examples: tuple[str, ...]
    """Up to `answers.MAX_EXAMPLES` texts of these."""
    raw_agreement: float | None
    """TARr@N; None if no completion came back."""
    parsed_agreement: float | None
    """TARa@N; None if no completion came back."""
    flip_interval: tuple[float, float] | None
    """Exact 95 % interval of the share of items whose answer changes; None without items."""
    by_load: tuple[LoadAccuracy, ...]
    """Smallest batch first, over the items that answered at every load; empty if no right answers
    are known."""
    standard_error: float | None
    """Binomial standard error of the mean accuracy, from the number of items alone."""
    div_index: float | None
    """Mean Div_Index of the items that diverge; None if none does."""

    @property
    def flipped(self) -> tuple[AnsweredItem, ...]:
        """The items whose answer changed."""
        return tuple(item for item in self.items if item.flips)

    @property
    def flip_share(self) -> float | None:
        """Share of items whose answer changed; None without items."""
        return len(self.flipped) / len(self.items) if self.items else None

    @property
    def parsed_nothing(self) -> bool:
        """True if completions came back and the parser found an answer in none of them."""
        return 0 < self.completions == self.unparsed

    @property
    def never_right(self) -> bool:
        """True if right answers are known and no completion gives one: no load can move that."""
        return self.best == 0

    @property
    def best(self) -> float | None:
        """Highest accuracy of a load; None if no right answers are known."""
        return max((load.accuracy for load in self.by_load), default=None)

    @property
    def worst(self) -> float | None:
        """Lowest accuracy of a load; None if no right answers are known."""
        return min((load.accuracy for load in self.by_load), default=None)

    @property
    def spread(self) -> float | None:
        """Best minus worst accuracy: what the load alone moves; None without right answers."""
        if self.best is None or self.worst is None:
            return None
        return self.best - self.worst

    @property
    def accuracy_std(self) -> float | None:
        """Std@Acc: standard deviation of the accuracy over loads; None with fewer than two."""
        if len(self.by_load) < 2:
            return None
        mean = sum(load.accuracy for load in self.by_load) / len(self.by_load)
        squares = sum((load.accuracy - mean) ** 2 for load in self.by_load)
        return math.sqrt(squares / (len(self.by_load) - 1))

    @property
    def top1_std(self) -> float | None:
        """Avg_Std@top1_prob: the mean of the items' own; None if no item has one."""
        known = [item.top1_std for item in self.items if item.top1_std is not None]
        return sum(known) / len(known) if known else None

    @property
    def sentence(self) -> str:
        """The finding in words: `the load alone moves this score by ±1.3 points; …`."""
        if self.parsed_nothing:
            return "the parser found no answer in any completion"
        flips = f"the answer to {len(self.flipped):,} of {count(len(self.items), 'item')} changes"
        if self.spread is None or len(self.by_load) < 2:
            return f"{flips} with the load"
        if self.never_right:
            return f"no completion gives a right answer, so there is no score to move; {flips}"
        half = 100 * self.spread / 2
        if half == 0:
            though = f", though {flips}" if self.flipped else ""
            return f"the load does not move this score{though}"
        return (
            f"the load alone moves this score by ±{amount(half, 'point')}; "
            "a difference below that is noise"
        )
