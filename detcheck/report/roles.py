"""Which groups of a run are the control, which are the cure, and how their answers compare."""

from __future__ import annotations

from collections.abc import Sequence

from detcheck.analysis.results import Analysis, Group
from detcheck.kernels.settings import AS_SERVED, BATCH_INVARIANT, STOCK


def control_groups(analysis: Analysis) -> tuple[Group, ...]:
    """The stock groups, one a prompt; without stock, those of the first kernels setting."""
    kernels = [group.kernels for group in analysis.groups]
    chosen = STOCK if STOCK in kernels else next(iter(kernels), STOCK)
    return tuple(group for group in analysis.groups if group.kernels == chosen)


def cure_groups(analysis: Analysis) -> tuple[Group, ...]:
    """The batch-invariant groups, one a prompt; without them, those of the first other setting.

    Empty if the run has nothing but stock kernels or a server's own.
    """
    others = [group.kernels for group in analysis.groups]
    kernels = [name for name in others if name not in (STOCK, AS_SERVED)]
    chosen = BATCH_INVARIANT if BATCH_INVARIANT in kernels else next(iter(kernels), None)
    return tuple(group for group in analysis.groups if group.kernels == chosen)


def compared_with_stock(stock: Group, group: Group) -> str:
    """Whether the answers of a group are among stock's: `its answer is one of stock's 12`.

    Empty if one of the two groups has no answers.
    """
    if not stock.variants or not group.variants:
        return ""
    shared = len(fingerprints(stock) & fingerprints(group))
    if group.distinct > 1:
        return f"stock gave {shared or 'none'} of its {group.distinct:,} answers too"
    if stock.distinct == 1:
        return "its answer is stock's too" if shared else "its answer is not stock's"
    return f"its answer is {'one' if shared else 'none'} of stock's {stock.distinct:,}"


def compared_over_prompts(control: Sequence[Group], cure: Sequence[Group]) -> str:
    """Whether the cure's answers are among stock's, over all prompts; empty without stock."""
    if control[0].kernels != STOCK:
        return ""
    pairs = list(zip(control, cure, strict=True))
    if len(pairs) == 1:
        return compared_with_stock(*pairs[0])
    within = sum(
        bool(group.variants) and fingerprints(group) <= fingerprints(stock)
        for stock, group in pairs
    )
    return f"on {within} of {len(pairs)} prompts every answer is one of stock's"


def fingerprints(group: Group) -> set[str]:
    """The fingerprints of a group's variants."""
    return {counted.variant.fingerprint for counted in group.variants}
