"""How a layer of attention turns products of queries and keys into weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer turns products of queries and keys into weights."""

    scaling: float | None = None
    """Factor of the products; None: one over the square root of the head size."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap)."""
    sinks: torch.Tensor | None = None
    """(heads,) scores of a key without a value, which takes its share of the weights."""

    @property
    def plain(self) -> bool:
        """True if a stock attention kernel can compute them."""
        return self.softcap is None and self.sinks is None
