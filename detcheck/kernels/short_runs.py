"""Short runs of a model that must agree to the bit: alone, padded in a batch, and decoded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
"""Token ids of the probed request."""
NUM_PROMPT_TOKENS = 3
"""Tokens of it that are prefilled; the others are decoded."""
_LONGER = (6, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8)
"""Token ids of the other request, which makes the probed one padded."""
_PADDING = len(_LONGER) - len(TOKENS)


def alone(model: Any) -> torch.Tensor:
    """Logits (tokens, vocabulary) of the probed prompt: one forward pass, no cache, no padding."""
    return _forward(model, [TOKENS[:NUM_PROMPT_TOKENS]], use_cache=False).logits[0]


def padded_and_decoded(model: Any) -> torch.Tensor:
    """The same logits, from a batch of two with padding on the left, kept in a cache.

    Then decodes a step, for whoever watches the ops. A model without a cache does not decode.
    """
    rows = [(0,) * _PADDING + TOKENS, _LONGER]
    stop = _PADDING + NUM_PROMPT_TOKENS
    out = _forward(model, [row[:stop] for row in rows], padding=_PADDING)
    logits: torch.Tensor = out.logits[0, _PADDING:]
    if _cache(out) is not None:
        step = [row[stop : stop + 1] for row in rows]
        _forward(model, step, padding=_PADDING, past=stop, cache=_cache(out))
    return logits


def decoding_agrees(model: Any) -> bool:
    """True if a request that is decoded token by token gives the bits of one forward pass.

    False also for models whose cache is not transformers' `past_key_values`.
    """
    whole = _forward(model, [TOKENS], use_cache=False).logits[0]
    out = _forward(model, [TOKENS[:NUM_PROMPT_TOKENS]])
    rows = [out.logits[0]]
    for at in range(NUM_PROMPT_TOKENS, len(TOKENS)):
        if _cache(out) is None:
            return False
        out = _forward(model, [TOKENS[at : at + 1]], past=at, cache=_cache(out))
        rows.append(out.logits[0])
    return torch.equal(torch.cat(rows), whole)


def keeps_state(model: Any) -> bool:
    """True if the model's cache holds more than keys and values: the state of a recurrence."""
    out = _forward(model, [TOKENS[:NUM_PROMPT_TOKENS]])
    if any(getattr(out, name, None) is not None for name in ("cache_params", "state")):
        return True
    return any(
        state is not None
        for layer in getattr(_cache(out), "layers", ())
        for state in getattr(layer, "recurrent_states", {}).values()
    )


def _forward(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    padding: int = 0,
    past: int = 0,
    cache: Any = None,
    use_cache: bool = True,
) -> Any:
    """One forward pass; `padding` tokens at the start of the first row are not to be seen.

    `past` tokens of each row, padding included, are in `cache` already.
    """
    device = next(model.parameters()).device
    input_ids = torch.tensor(rows, device=device)
    mask = torch.ones(len(rows), past + input_ids.shape[1], dtype=torch.long, device=device)
    mask[0, :padding] = 0
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": use_cache}
    if padding or past:
        inputs["attention_mask"] = mask
    known = inspect.signature(model.forward).parameters
    if "position_ids" in known and (padding or past):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs["position_ids"] = positions[:, past:]
    if cache is not None:
        inputs["past_key_values"] = cache
    return model(**{name: value for name, value in inputs.items() if name in known})


def _cache(out: Any) -> Any:
    """The cache that a forward pass gave back, None if it gave none."""
    return getattr(out, "past_key_values", None)
