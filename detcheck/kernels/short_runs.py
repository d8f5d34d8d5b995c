"""Short runs of a model that must agree to the bit: alone, padded in a batch, and decoded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from detcheck.kernels.positions import (
    first_position,
    positions_of,
    takes_positions,
    without_padding_token,
)
from detcheck.kernels.token_sums import TokenSums

TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
"""Token ids of the probed request."""
NUM_PROMPT_TOKENS = 3
"""Tokens of it that are prefilled; the others are decoded."""
CHUNK = 4
"""Tokens of a chunk, if a prompt is computed in chunks."""
_LONGER = (6, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8)
"""Token ids of the other request, which makes the probed one padded."""
_PADDING = len(_LONGER) - len(TOKENS)
LONG = (127, 61, 31)
"""Tokens of a padded prompt in a long run: the first that the model has positions for.

The longest crosses the blocks of 64 keys of kernels. They are prime numbers for `TokenSums`."""
_COPIES = 32
_COPIED = 7
"""The number of equal rows of equal tokens, and their token id."""
_MARGIN = 4
"""Positions that a model may leave out: those up to its padding token's, and one to decode."""
_PADDED_SHARE = 5
"""One token in so many is padding in a long run."""


def alone(model: Any) -> torch.Tensor:
    """Logits (tokens, vocabulary) of the probed prompt and of the token after it, with a cache.

    A model without a cache does not decode: then the logits are those of the prompt.
    """
    return _logits(model, [TOKENS])


def beside_longer(model: Any) -> torch.Tensor:
    """The same logits, from a batch of two in which the probed row is padded on the left."""
    return _logits(model, [(0,) * _PADDING + TOKENS, _LONGER], padding=_PADDING)


def beside_equal(model: Any) -> torch.Tensor:
    """The same logits, from a batch of three requests of one length, without padding."""
    return _logits(model, [TOKENS, _LONGER[: len(TOKENS)], TOKENS[::-1]])


def beside_copies(model: Any) -> bool:
    """True if the last of many copies of a request has the logits that it has alone.

    All its tokens are equal, so a router sends them to one expert. If an expert takes a limited
    number of tokens of a batch, it leaves out the last ones.
    """
    row = (_COPIED,) * (NUM_PROMPT_TOKENS + 1)
    return torch.equal(_logits(model, [row]), _logits(model, [row] * _COPIES, row=-1))


def long_padding_agrees(model: Any, longest: int | None = None) -> bool:
    """True if a prompt of up to 102 tokens gives the same logits alone and with padding.

    False also if an op sums over the padding in an order that depends on it: in 16 bits most sums
    round to the same bits. `longest` limits the tokens of a row.
    """
    limits = (limit for limit in (longest, _num_positions(model)) if limit is not None)
    most = min(limits, default=LONG[0] + _MARGIN + 1)
    length = next((length for length in LONG if length + _MARGIN < most), None)
    if length is None:
        return True
    padding = length // _PADDED_SHARE
    probe, other = _row(length + 1 - padding, 7), _row(length + 1, 11)
    whole = _logits(model, [probe], prompt=length - padding)
    with TokenSums(length) as sums:
        rows = [(0,) * padding + probe, other]
        padded = _logits(model, rows, padding, prompt=length - padding)
    return not sums.found and torch.equal(whole, padded)


def _row(length: int, step: int) -> tuple[int, ...]:
    """Token ids 1 to 13 in another order for each `step`."""
    return tuple(1 + at * step % 13 for at in range(length))


def _num_positions(model: Any) -> int | None:
    """Positions that the model has; None if its config does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _logits(
    model: Any,
    rows: Sequence[Sequence[int]],
    padding: int = 0,
    *,
    prompt: int = NUM_PROMPT_TOKENS,
    row: int = 0,
) -> torch.Tensor:
    """Logits of a row's prompt, without its padding, and of its first decoded token.

    `prompt` is the number of tokens of the prompt. Only the first row has padding.
    """
    first_position(model)  # found before there is a cache
    stop = padding + prompt
    out = _forward(model, [ids[:stop] for ids in rows], padding=padding)
    scores: torch.Tensor = out.logits
    logits = scores[row] if scores.dim() == 2 else scores[row, padding:]  # of a classifier: a row
    caches = _caches(out)
    if not caches:
        return logits
    out = _next_step(model, rows, stop, caches, padding)
    return torch.cat([logits, out.logits[row]])


WHOLE_INPUTS = frozenset({"cpmant"})
"""Architectures that take all tokens in a decoding step, and leave out those in the cache."""


def _next_step(
    model: Any,
    rows: Sequence[Sequence[int]],
    past: int,
    caches: dict[str, Any],
    padding: int = 0,
    count: int = 1,
) -> Any:
    """Compute the `count` tokens of each row after the first `past`, which are in `caches`."""
    stop = past + count
    if model.config.model_type in WHOLE_INPUTS:
        return _forward(model, [row[:stop] for row in rows], caches=caches)
    step = [row[past:stop] for row in rows]
    return _forward(model, step, padding=padding, past=past, caches=caches)


def decoding_agrees(model: Any) -> bool:
    """True if a request that is decoded token by token gives the bits of one forward pass.

    False also for models without a cache.
    """
    return _steps_agree(model, 1)


def chunks_agree(model: Any) -> bool:
    """True if a prompt that is computed in chunks gives the bits of one forward pass.

    Models that keep a state take the cached one for single tokens only: transformers starts the
    state of a chunk anew, so that the logits are others.
    """
    try:
        return _steps_agree(model, CHUNK)
    except Exception:  # of the model's own code, which may take single tokens only
        return False


def _steps_agree(model: Any, count: int) -> bool:
    first_position(model)  # found before there is a cache
    whole = _forward(model, [TOKENS], use_cache=False).logits[0]
    out = _forward(model, [TOKENS[:NUM_PROMPT_TOKENS]])
    rows = [out.logits[0]]
    for at in range(NUM_PROMPT_TOKENS, len(TOKENS), count):
        caches = _caches(out)
        if not caches:
            return False
        out = _next_step(model, [TOKENS], at, caches, count=count)
        rows.append(out.logits[0])
    return torch.equal(torch.cat(rows), whole)


def drops_mask(model: Any) -> bool:
    """True if the model's own code leaves the attention mask out when it generates."""
    ids = torch.tensor([TOKENS[:NUM_PROMPT_TOKENS]], device=next(model.parameters()).device)
    mask = torch.ones_like(ids)
    try:
        inputs = model.prepare_inputs_for_generation(
            ids, attention_mask=mask, use_cache=True, is_first_iteration=True
        )
    except Exception:  # of the model's own code, which may need more
        return False
    return inputs.get("attention_mask") is None


def keeps_state(model: Any) -> bool:
    """True if the model's cache holds more than keys and values: the state of a recurrence."""
    if "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        return True
    out = _forward(model, [TOKENS[:NUM_PROMPT_TOKENS]])
    caches = _caches(out)
    layers = getattr(caches.get("past_key_values"), "layers", ())
    return any(name != "past_key_values" for name in caches) or any(
        state is not None
        for layer in layers
        for state in getattr(layer, "recurrent_states", {}).values()
    )


def _forward(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    padding: int = 0,
    past: int = 0,
    caches: dict[str, Any] | None = None,
    use_cache: bool = True,
) -> Any:
    """One forward pass; `padding` tokens at the start of the first row are not to be seen.

    `past` tokens of each row, padding included, are in `caches` already.
    """
    device = next(model.parameters()).device
    input_ids = without_padding_token(torch.tensor(rows, device=device), model)
    mask = torch.ones(len(rows), past + input_ids.shape[1], dtype=torch.long, device=device)
    mask[0, :padding] = 0
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": use_cache, **(caches or {})}
    # A model that keeps only a state needs no mask beyond the prefill, and takes none.
    if "past_key_values" in (caches or {}) or (padding and not caches):
        inputs["attention_mask"] = mask
    if takes_positions(model) and (padding or past):
        inputs["position_ids"] = positions_of(mask, first_position(model))[:, past:]
    known = inspect.signature(model.forward).parameters
    return model(**{name: value for name, value in inputs.items() if name in known})


CACHES = ("past_key_values", "cache_params", "state")
"""Names of caches, which a forward pass gives back and the next one takes."""


def _caches(out: Any) -> dict[str, Any]:
    """The caches that a forward pass gave back, by name."""
    found = {name: getattr(out, name, None) for name in CACHES}
    return {name: cache for name, cache in found.items() if cache is not None}
