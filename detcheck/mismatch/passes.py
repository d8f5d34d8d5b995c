"""Forward passes over rollouts: decode steps, one prefill, and a trainer's rows.

Each gives the logits from which the tokens of a completion are chosen, (tokens, vocabulary), on
the model's device. The model is in evaluation mode: dropout would be another source of difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from detcheck.errors import MeasurementError
from detcheck.mismatch.rollouts import Rollout

ROWS = 8
"""Sequences that a trainer computes in one forward pass, padded or packed."""


def decoded(model: Any, rollout: Rollout) -> torch.Tensor:
    """The sampler's steps again, alone: the prompt in one pass, then token by token.

    Raises MeasurementError if the model gives no cache back.
    """
    ids = torch.tensor([rollout.token_ids], device=model.device)
    start = len(rollout.prompt_ids)
    out = model(input_ids=ids[:, :start], use_cache=True)
    rows = [out.logits[0, -1:]]
    for at in range(start, ids.shape[1] - 1):
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise MeasurementError("the model keeps no cache to decode with")
        out = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        rows.append(out.logits[0, -1:])
    return torch.cat(rows)


def prefilled(model: Any, rollout: Rollout) -> torch.Tensor:
    """One pass over the whole sequence, without a cache."""
    ids = torch.tensor([rollout.token_ids], device=model.device)
    return _own(model(input_ids=ids, use_cache=False).logits[0], rollout)


def trained(
    model: Any, rollouts: Sequence[Rollout], layout: str, pad_token_id: int
) -> Iterator[torch.Tensor]:
    """The logits of each rollout, in order, as a trainer computes them: with gradients recorded."""
    rows = ROWS if layout != "single" else 1
    for start in range(0, len(rollouts), rows):
        yield from TRAINER_PASSES[layout](model, rollouts[start : start + rows], pad_token_id)


def _single(model: Any, rollouts: Sequence[Rollout], _: int) -> Iterator[torch.Tensor]:
    for rollout in rollouts:
        ids = torch.tensor([rollout.token_ids], device=model.device)
        yield _own(model(input_ids=ids, use_cache=False).logits[0], rollout)


def _padded(model: Any, rollouts: Sequence[Rollout], pad: int) -> Iterator[torch.Tensor]:
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    ids = torch.full((len(rollouts), longest), pad, device=model.device)
    mask = torch.zeros_like(ids)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.token_ids)
        ids[row, :length] = torch.tensor(rollout.token_ids, device=model.device)
        mask[row, :length] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for row, rollout in enumerate(rollouts):
        yield _own(logits[row], rollout)


def _packed(model: Any, rollouts: Sequence[Rollout], _: int) -> Iterator[torch.Tensor]:
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    ids = [token for rollout in rollouts for token in rollout.token_ids]
    positions = [at for length in lengths for at in range(length)]
    logits = model(
        input_ids=torch.tensor([ids], device=model.device),
        position_ids=torch.tensor([positions], device=model.device),
        use_cache=False,
    ).logits[0]
    for rollout, own in zip(rollouts, logits.split(lengths), strict=True):
        yield _own(own, rollout)


TRAINER_PASSES: dict[str, Callable[[Any, Sequence[Rollout], int], Iterator[torch.Tensor]]] = {
    "single": _single,
    "padded": _padded,
    "packed": _packed,
}


def _own(logits: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """The rows from which the completion's tokens are chosen, of (tokens, vocabulary)."""
    start = len(rollout.prompt_ids) - 1
    return logits[start : start + len(rollout.completion_ids)]


@contextmanager
def head_inputs(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the last token's input to the model's head, (1, hidden), of every pass inside."""
    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    if head is None:
        yield seen
        return
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1:].detach()))
    try:
        yield seen
    finally:
        hook.remove()
