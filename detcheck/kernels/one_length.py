"""Models whose rows do not depend on their batch as long as all rows have one length.

Some models compute with their padding: learned positions count it, or a scan cuts the row into
chunks from the start of its padding. Without padding their rows are invariant. The check here
keeps padding from them: it looks at the inputs of every forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch

from detcheck.errors import UsageError
from detcheck.kernels.pass_hooks import look_at_passes

STEPWISE = frozenset({"zaya", "mamba", "falcon_mamba", "jamba"})
"""Architectures whose state goes from token to token, and stays at its start on padding."""
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "seq_idx")
"""Inputs that say where the sequences of one row begin."""


def has_chunked_state(model: torch.nn.Module) -> bool:
    """True if transformers says that a layer keeps a state which padding may change."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return False
    text = config.get_text_config()
    linear = "linear_attention" in (getattr(text, "layer_types", None) or ())
    stateful = linear or bool(getattr(model, "_is_stateful", False))
    return stateful and text.model_type not in STEPWISE


def counts_padding(model: torch.nn.Module) -> bool:
    """True if positions of a causal model count its padding: it has some, and takes none."""
    if not generates(model) or "position_ids" in inspect.signature(model.forward).parameters:
        return False
    return any(
        "position" in type(module).__name__.lower()
        or ("position" in name.lower() and isinstance(module, torch.nn.Embedding))
        for name, module in model.named_modules()
    )


PROJECTIONS = frozenset({"in_proj", "q_proj", "k_proj"})
"""Names of the linear layers whose results a short convolution takes."""


def convolves_padding(model: torch.nn.Module) -> bool:
    """True if a convolution of a causal model takes a projection with a bias.

    transformers sets padding to zero before the projection, whose bias then follows the padding.
    """
    return generates(model) and any(
        any(isinstance(part, torch.nn.Conv1d) for part in module.modules())
        for module in model.modules()
        if any(
            name in PROJECTIONS and getattr(part, "bias", None) is not None
            for name, part in module.named_children()
        )
    )


def generates(model: torch.nn.Module) -> bool:
    """True for a causal language model of transformers, which has no encoder."""
    can_generate: Any = getattr(model, "can_generate", None)
    config: Any = getattr(model, "config", None)
    return bool(can_generate and can_generate()) and not getattr(
        config, "is_encoder_decoder", False
    )


def refuse_padding(
    model: torch.nn.Module, name: str, when: Callable[[], bool] = lambda: True
) -> Callable[[], None]:
    """Let forward passes of `model` raise UsageError if a row is padded or holds two sequences.

    So do those of its `base_model`, which has no head, if it is called by itself.

    `generate` does so too, since some models leave the mask out before the forward pass. Only
    passes during which `when()` is true are looked at. Returns the function that ends this.
    """

    def look(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
        problem = why_not_one_length(given) if when() else None
        if problem is not None:
            raise UsageError(
                f"{name} is held for requests of one length only, and {problem}: batch requests "
                'of equal length without padding, or use `kernels="stock"`.'
            )

    on_exit = ExitStack()
    on_exit.callback(look_at_passes(model, look))
    prepare: Any = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is not None:

        @wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            look(prepare, args, kwargs)
            return prepare(*args, **kwargs)

        model.__dict__["prepare_inputs_for_generation"] = prepared
        on_exit.callback(model.__dict__.pop, "prepare_inputs_for_generation", None)
    return on_exit.close


def why_not_one_length(inputs: Mapping[str, Any]) -> str | None:
    """The fault in a forward pass's arguments, by name, as a phrase; None if there is no padding.

    `attention_mask` must be (rows, tokens) without zeros, `position_ids` must count up by one.
    """
    inputs = {**inputs, **inputs.get("kwargs", {})}
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if any(inputs.get(packed) is not None for packed in _PACKED):
        return "a row of this forward pass holds several sequences"
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        return "the attention mask of this forward pass is not (rows, tokens)"
    if mask is not None and not bool((mask != 0).all()):
        return "a row of this forward pass is padded"
    if isinstance(positions, torch.Tensor) and bool((positions.diff(dim=-1) != 1).any()):
        return "the positions of a row of this forward pass do not count up by one"
    return None
