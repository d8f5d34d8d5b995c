"""The names of kernels settings and the promise of each. Imports no torch.

A setting is text, such as `stock`, `batch-invariant`, `fully-invariant` or
`batch-invariant:matmul+attention`. It is parsed once, by `KernelSettings.parse`.
"""

from __future__ import annotations

from dataclasses import dataclass

from detcheck.errors import UsageError

STOCK = "stock"
"""PyTorch's own kernels, unchanged."""
BATCH_INVARIANT = "batch-invariant"
"""Holds `repeat`, `batch-size`, `position`, `neighbours`, `layout` and `padding`."""
FULLY_INVARIANT = "fully-invariant"
"""Holds `chunking`, `prefill-decode` and `prefix-cache` as well, at a price."""
AS_SERVED = "as-served"
"""The kernels of a server: whatever it was started with. detcheck cannot change them."""

OP_FAMILIES = ("matmul", "attention", "norm", "softmax", "reduce", "pointwise")
"""Families of ops that have batch-invariant kernels; `batch-invariant:matmul` is one of them."""
PREFILL = "prefill"
"""The additional family of `fully-invariant`: each query of a prompt is computed on its own."""
FAMILIES = (*OP_FAMILIES, PREFILL)
CORE_FAMILIES = ("matmul", "attention")
"""Families that every transformer uses. A model may have no op of the others."""


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """One kernels setting, parsed."""

    name: str
    """The setting as text, such as `batch-invariant:matmul`."""
    families: tuple[str, ...]
    """Op families that it makes invariant; empty for `stock` and `as-served`."""

    @classmethod
    def parse(cls, name: str) -> KernelSettings:
        """Parse a setting. Raises UsageError if the setting or one of its families is unknown."""
        if name in (STOCK, AS_SERVED):
            return cls(name, ())
        if name == FULLY_INVARIANT:
            return cls(name, FAMILIES)
        level, colon, subset = name.partition(":")
        if level != BATCH_INVARIANT or (colon and not subset):
            raise UsageError(
                f"Unknown kernels {name!r}: use stock, batch-invariant, fully-invariant, or a "
                f"subset such as batch-invariant:{OP_FAMILIES[0]}."
            )
        families = tuple(subset.split("+")) if subset else OP_FAMILIES
        for family in families:
            if family not in FAMILIES:
                raise UsageError(
                    f"Unknown op family {family!r} in {name!r}: known are "
                    f"{', '.join(FAMILIES)}, joined by '+'."
                )
        return cls(name, families)

    @property
    def claims_invariance(self) -> bool:
        """True if the setting switches on invariant kernels, which then have to be proven.

        `stock` and `as-served` claim nothing.
        """
        return self.name not in (STOCK, AS_SERVED)

    @property
    def claims_prefix_cache(self) -> bool:
        """True if an answer keeps its bits when its prefix comes from an earlier request's cache.

        What follows the prefix is then a shorter prefill, so each query must be computed alone.
        """
        return self.name == FULLY_INVARIANT

    @property
    def whole_level(self) -> bool:
        """True for `batch-invariant` and `fully-invariant`, false for a subset of families."""
        return self.name in (BATCH_INVARIANT, FULLY_INVARIANT)

    @property
    def required_families(self) -> tuple[str, ...]:
        """Families that must be seen to run before the setting is believed to have had effect.

        Of a subset, each family that it names. Of a whole level only the core families, since a
        model may have no op of the others (its softmax, say, is inside attention).
        """
        if self.name == FULLY_INVARIANT:
            return (*CORE_FAMILIES, PREFILL)
        return CORE_FAMILIES if self.families == OP_FAMILIES else self.families
