"""Features of attention that no invariant kernel covers: each is refused in one sentence."""

from __future__ import annotations

from typing import Any

from detcheck.errors import UsageError


def refuse_unsupported(
    module: Any, dropout: float, kwargs: dict[str, Any], *, packed: bool
) -> None:
    """Raise UsageError, one sentence, for a feature that no invariant kernel covers yet."""
    feature = None
    if packed and kwargs.get("position_bias") is not None:
        feature = "a position bias in continuous batching"
    elif dropout > 0:
        feature = "dropout"
    elif kwargs.get("output_attentions") and _returns_weights(module):
        feature = "returning attention weights (`output_attentions=True`)"
    if feature is not None:
        raise UsageError(
            f"Batch-invariant attention does not cover {feature}, which this model uses: use "
            '`kernels="stock"` or `kernels="batch-invariant:matmul"`.'
        )


def _returns_weights(module: Any) -> bool:
    """True if the stock attention of this layer returns weights: that of `sdpa` returns none."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
