"""Models that compute a whole batch in another way once one of its rows is long.

Some rotary embeddings are rescaled by the longest request of a batch, and some scales count the
padding of a row. Up to a limit these change nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from detcheck.errors import UsageError
from detcheck.kernels.pass_hooks import look_at_passes


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """The tokens up to which the rows of a model do not depend on the longest one."""

    most: int
    counts_padding: bool
    """True if padding counts as tokens of a row."""
    effect: str
    """What the model does beyond it, as a phrase."""

    def tokens_of(self, inputs: dict[str, Any]) -> int:
        """Tokens of the longest row of a forward pass, those in the cache included.

        `inputs` are the arguments of the pass, by name.
        """
        positions = inputs.get("position_ids")
        if isinstance(positions, torch.Tensor) and positions.numel() and not self.counts_padding:
            return int(positions.max()) + 1
        tokens = inputs.get("input_ids")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        cache: Any = inputs.get("past_key_values")
        past = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        return int(past) + (0 if tokens is None else tokens.shape[1])


def length_limits(model: Any) -> tuple[LengthLimit, ...]:
    """All limits of a model; none for a module that is no model of transformers."""
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        return ()
    config = model.config.get_text_config()
    limits = []
    for most, counts_padding in _rescaled(config):
        effect = (
            "rescales the positions of a whole batch once one request in it is longer than "
            f"{most} tokens"
        )
        limits.append(LengthLimit(most, counts_padding, effect))
    sparse = _sparse(config)
    if sparse is not None:
        effect = (
            f"attends in sparse blocks once the batch has more than {sparse} tokens a row, "
            "padding included"
        )
        limits.append(LengthLimit(sparse, True, effect))
    return tuple(sorted(limits, key=lambda limit: limit.most))


def longest_run(model: Any) -> int | None:
    """Tokens of a row beyond which the model takes other formulas; None if it never does."""
    limits = length_limits(model)
    return limits[0].most if limits else None


def why_too_long(model: Any, name: str, longest: int = 0) -> str | None:
    """A sentence with the fault and its remedy if a request is too long; else None."""
    for limit in length_limits(model):
        if longest > limit.most:
            return (
                f"{name} {limit.effect}, and the longest request here may have {longest}: use "
                'shorter prompts, lower `max_new_tokens`, or use `kernels="stock"`.'
            )
    return None


def pass_too_long(
    limits: Sequence[LengthLimit], function: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> str | None:
    """A phrase with the fault of a forward pass, called with these arguments; else None."""
    given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    inputs = {**given, **given.get("kwargs", {})}
    for limit in limits:
        tokens = limit.tokens_of(inputs)
        if tokens > limit.most:
            return f"{limit.effect}, and a forward pass has {tokens}"
    return None


def refuse_long_passes(model: torch.nn.Module, name: str) -> Callable[[], None]:
    """Let forward passes of `model` raise UsageError if a row is longer than its limits.

    Returns the function that ends this.
    """
    limits = length_limits(model)
    if not limits:
        return lambda: None

    def look(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        problem = pass_too_long(limits, function, args, kwargs)
        if problem is not None:
            raise UsageError(f'{name} {problem}: use shorter requests, or `kernels="stock"`.')

    return look_at_passes(model, look)


def _rescaled(config: Any) -> list[tuple[int, bool]]:
    """Tokens of one request from which on all are scaled in another way, and if padding counts.

    Either by another rotary embedding, or since positions count the padding.
    """
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One for all layers, or one by kind of layer.
    each = [rope for rope in (given, *given.values()) if isinstance(rope, dict)]
    own = getattr(config, "original_max_position_embeddings", None)
    trained = own or getattr(config, "max_position_embeddings", None)
    limits = [
        rope.get("original_max_position_embeddings") or trained
        for rope in each
        if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope")
    ]
    counting = []
    scale = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and isinstance(scale, int):  # of Llama 4
        counting.append(scale - 1)
    if isinstance(floor := getattr(config, "log_scaling_n_floor", None), int):  # of Inkling
        counting.append(floor)
    return [(most, False) for most in limits if most] + [(most, True) for most in counting]


def _sparse(config: Any) -> int | None:
    """Tokens of a row from which on BigBird leaves full attention, for good; None: never."""
    if config.model_type != "big_bird" or config.attention_type != "block_sparse":
        return None
    limit: int = (5 + 2 * config.num_random_blocks) * config.block_size
    return limit
