"""The cost of a kernels setting: time per token against stock, with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Group
from detcheck.report.text import factor


@dataclass(frozen=True, slots=True)
class Cost:
    """Time per token as a multiple of stock's."""

    mean: float
    low: float
    high: float
    over: str
    """The range of `low` and `high`: `over the batch sizes`, `over the prompts`."""

    @property
    def spread(self) -> bool:
        """True if `low` and `high` differ in the digits that are shown."""
        return factor(self.low) != factor(self.high)


def group_cost(group: Group) -> Cost | None:
    """The cost of one group over all its batch sizes; None for stock, or if it was not measured."""
    if group.relative_cost is None:
        return None
    costs = [row.relative_cost for row in group.by_batch_size if row.relative_cost is not None]
    costs = costs or [group.relative_cost]
    return Cost(group.relative_cost, min(costs), max(costs), "over the batch sizes")


def total_cost(groups: Sequence[Group]) -> Cost | None:
    """The cost of one kernels setting over several prompts: mean, lowest and highest.

    With several prompts, low and high range over the prompts.
    """
    costs = [cost for group in groups if (cost := group_cost(group)) is not None]
    if len(costs) <= 1:
        return costs[0] if costs else None
    means = [cost.mean for cost in costs]
    mean = sum(means) / len(means)
    return Cost(mean, min(means), max(means), "over the prompts")


def cost_range(cost: Cost | None) -> str:
    """`0.94× (0.63–1.15)`: the mean, and the lowest and highest if they differ; `–` for None."""
    if cost is None:
        return "–"
    return factor(cost.mean) + (f" ({cost.low:.2f}–{cost.high:.2f})" if cost.spread else "")
