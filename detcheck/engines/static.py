"""Lockstep batches: exactly b rows from the first forward pass to the last, padded on the left."""

from __future__ import annotations

from typing import Any

import torch

from detcheck.engines.base import OnTokens
from detcheck.engines.in_process import InProcessEngine, pad_token_id, token_rows
from detcheck.engines.own_decoding import own_decoding_set_aside
from detcheck.engines.partial import PartialCompletion
from detcheck.engines.passes import PaddedPass
from detcheck.kernels.positions import first_position, positions_of
from detcheck.traffic import Trial


class StaticEngine(InProcessEngine):
    """Engine `static`: transformers' `generate` on one padded batch a trial."""

    @property
    def one_length(self) -> bool:
        """See `InProcessEngine`: without fillers a batch holds copies of one prompt."""
        return self.experiment.traffic == "alone"

    def generate(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Generate for all rows together; arrival steps mean nothing here."""
        from transformers import GenerationConfig, LogitsProcessorList

        partials = [
            PartialCompletion(request.max_new_tokens, request.seed) for request in trial.requests
        ]
        inputs = self._pad([self.encode(request.prompt) for request in trial.requests])
        step = _Step(self, partials, on_tokens)
        model = self.loaded.model
        decoding = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(partial.max_new_tokens for partial in partials),
            eos_token_id=list(self.loaded.eos_token_ids) or None,
            pad_token_id=pad_token_id(self.loaded),
        )
        hook = model.register_forward_pre_hook(step.begins, prepend=True, with_kwargs=True)
        try:
            with own_decoding_set_aside(model):
                model.generate(
                    **inputs,
                    generation_config=decoding,
                    logits_processor=LogitsProcessorList([step]),
                )
        finally:
            hook.remove()
        return partials

    def _pad(self, prompts: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Left-padded inputs, (rows, longest) each.

        `position_ids` are among them for a model whose positions do not start at 0.
        """
        longest = max(map(len, prompts))
        pad = pad_token_id(self.loaded)
        ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.loaded.device
        inputs = {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        first = first_position(self.loaded.model)
        if first:
            inputs["position_ids"] = positions_of(inputs["attention_mask"], first)
        return inputs


class _Step:
    """What happens around each forward pass of `generate`.

    As a hook it describes the pass that begins. As a logits processor it chooses each row's token
    and keeps the runner-up; it hands `generate` scores whose argmax is its choice, so that both
    take the same token.
    """

    def __init__(
        self,
        engine: StaticEngine,
        partials: list[PartialCompletion],
        on_tokens: OnTokens | None,
    ):
        self._engine = engine
        self._partials = partials
        self._on_tokens = on_tokens
        self._eos_token_ids = engine.loaded.eos_token_ids
        self._generated = 0

    def begins(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Describe the pass, and count it for the requests that have not ended."""
        input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        rows, tokens = input_ids.shape
        forward_pass = PaddedPass(rows, tokens, *_keys(rows, tokens, kwargs.get("attention_mask")))
        for partial in self._partials:
            if partial.finish_reason is None:
                partial.joined_pass(rows, forward_pass.query_tokens)
        self._engine.begin_pass(forward_pass)

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Choose a token for each row of (rows, vocabulary) scores."""
        ranked = self._engine.choose(scores, self._partials)
        for partial, token in zip(self._partials, token_rows(ranked), strict=True):
            if partial.finish_reason is None:
                partial.append(token, self._eos_token_ids)
                self._generated += 1
        if self._on_tokens is not None:
            self._on_tokens(self._generated)
        choice = torch.full_like(scores, -torch.inf)
        return choice.scatter_(1, ranked.best.to(scores.device)[:, None], 0.0)


def _keys(rows: int, tokens: int, mask: Any) -> tuple[int, tuple[int, ...]]:
    """Keys of each row with padding, and of each row without; from a (rows, keys) mask if any."""
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return mask.shape[1], tuple(mask.sum(1).tolist())
    return tokens, (tokens,) * rows
