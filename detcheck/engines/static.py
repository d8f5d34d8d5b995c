"""Lockstep batches: exactly b rows from the first forward pass to the last, padded on the left."""

from __future__ import annotations

from typing import Any

import torch

from detcheck.engines.base import OnTokens
from detcheck.engines.in_process import Answer, InProcessEngine, pad_token_id, token_rows
from detcheck.traffic import Trial


class StaticEngine(InProcessEngine):
    """Engine `static`: transformers' `generate` on one padded batch a trial."""

    def answer(self, trial: Trial, on_tokens: OnTokens | None) -> list[Answer]:
        """Generate for all rows together; arrival steps mean nothing here."""
        from transformers import GenerationConfig, LogitsProcessorList

        answers = [Answer(request.max_new_tokens, request.seed) for request in trial.requests]
        inputs = self._pad([self.encode(request.prompt) for request in trial.requests])
        recorder = _Recorder(self, answers, on_tokens)
        model = self.loaded.model
        hook = model.register_forward_pre_hook(recorder.saw_forward, with_kwargs=True)
        try:
            model.generate(
                **inputs,
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(answer.max_new_tokens for answer in answers),
                    eos_token_id=list(self.loaded.eos_token_ids) or None,
                    pad_token_id=pad_token_id(self.loaded),
                ),
                logits_processor=LogitsProcessorList([recorder]),
            )
        finally:
            hook.remove()
        return answers

    def _pad(self, prompts: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Left-padded `input_ids` and `attention_mask`, (rows, longest) each."""
        longest = max(map(len, prompts))
        pad = pad_token_id(self.loaded)
        ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.loaded.device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }


class _Recorder:
    """A logits processor that chooses each row's token and keeps the runner-up.

    It hands `generate` scores whose argmax is its choice, so both take the same token.
    """

    def __init__(self, engine: StaticEngine, answers: list[Answer], on_tokens: OnTokens | None):
        self._engine = engine
        self._answers = answers
        self._on_tokens = on_tokens
        self._generated = 0

    def saw_forward(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the rows and tokens that enter a forward pass."""
        input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        rows, tokens = input_ids.shape
        for answer in self._answers:
            if answer.finish_reason is None:
                answer.saw_forward(rows, rows * tokens)

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Choose a token for each row of (rows, vocabulary) scores."""
        draws = [answer.draw for answer in self._answers]
        ranked = self._engine.sampler.choose(scores, draws)
        for answer, token in zip(self._answers, token_rows(ranked), strict=True):
            if answer.finish_reason is None:
                answer.append(token, self._engine.loaded.eos_token_ids)
                self._generated += 1
        if self._on_tokens is not None:
            self._on_tokens(self._generated)
        choice = torch.full_like(scores, -torch.inf)
        return choice.scatter_(1, ranked.best.to(scores.device)[:, None], 0.0)
