"""The position that a model gives to the first token of a request.

Most models count from 0. Models of the RoBERTa family count from behind the padding token's id,
and only do so if no positions are given.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch

_PROBE = (5, 6, 7)
_known: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


def first_position(model: Any) -> int:
    """The position of a request's first token, found once a model by passes of a few tokens.

    0 for models that take no positions. 0 as well if the model's own positions are neither those
    from 0 nor those from behind its padding token.
    """
    if model not in _known:
        _known[model] = _found(model)
    return _known[model]


def _found(model: Any) -> int:
    pad = _padding_token(model)
    if pad is None or not takes_positions(model):
        return 0
    ids = torch.tensor([_PROBE], device=next(model.parameters()).device)
    ids, counted = without_padding_token(ids, model), torch.arange(len(_PROBE), device=ids.device)
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits
        for first in (0, pad + 1):
            positions = counted[None] + first
            given = model(input_ids=ids, use_cache=False, position_ids=positions).logits
            if torch.equal(own, given):
                return first
    return 0


def without_padding_token(ids: torch.Tensor, model: Any) -> torch.Tensor:
    """Token ids with the next one in the place of each from the model's padding token on.

    A vocabulary that is too small for them starts anew.
    """
    pad, size = _padding_token(model), getattr(model.config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and size > 1:
        ids = ids % (size - 1)
    return ids if pad is None else ids + (ids >= pad).to(ids.dtype)


def _padding_token(model: Any) -> int | None:
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) else None


def takes_positions(model: Any) -> bool:
    """True if the model's forward takes `position_ids`."""
    return "position_ids" in inspect.signature(model.forward).parameters


def positions_of(mask: torch.Tensor, first: int) -> torch.Tensor:
    """Positions (rows, tokens) for a (rows, tokens) mask.

    Padding and the first token behind it have position `first`.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0) + first
