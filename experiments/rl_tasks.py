"""The tasks of `on_policy_rl.py`: rows of digits to reverse, for a tiny model and the embedded one.

A problem is (token ids of the prompt, token ids of the wanted completion, its end included).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from detcheck import models

BOS, SEP, EOS, PAD = 10, 11, 12, 13
"""Token ids of the tiny model after the ten digits."""
LENGTHS = (3, 4, 5, 6)
"""Digits of a row, for the tiny model."""
FEWER = (3, 4)
"""The same for the embedded model, of which every token costs processor time."""
Problem = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Task:
    """A model and its problems."""

    new_model: Callable[[], Any]
    """Makes a model in float32, in evaluation mode."""
    encode: Callable[[list[int]], Problem]
    """The problem of a row of digits."""
    digits: tuple[int, ...]
    """How many digits a row may have."""
    eos: int
    pad: int
    most_tokens: int
    """Most tokens of a completion."""
    prompts: int
    """Prompts of a batch."""
    samples: int
    """Samples of each prompt."""
    warm_up_rows: int
    """Sequences of a step of the supervised warm-up."""
    warm_up_rate: float
    learning_rate: float
    held_out: int = 64
    """Problems by which the policy is judged after its last step."""
    last_layers: int | None = None
    """How many layers policy gradients train, counted from the last; None for the whole model."""

    def freeze(self, model: Any) -> None:
        """Leave gradients on for the weights that policy gradients train, and only for them."""
        if self.last_layers is None:
            return
        model.requires_grad_(False)
        for layer in model.model.layers[-self.last_layers :]:
            layer.requires_grad_(True)

    def problems(self, generator: torch.Generator, count: int) -> list[Problem]:
        """Random rows of digits."""
        found = []
        for _ in range(count):
            at = int(torch.randint(len(self.digits), (1,), generator=generator))
            digits = torch.randint(10, (self.digits[at],), generator=generator).tolist()
            found.append(self.encode(digits))
        return found


def _tiny_model() -> Any:
    config = LlamaConfig(
        vocab_size=16, hidden_size=96, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def _tiny_problem(digits: list[int]) -> Problem:
    return [BOS, *digits, SEP], [*digits[::-1], EOS]


@cache
def _tokenizer() -> Any:
    return models.load(None, dtype="float32", device="cpu").tokenizer


def _embedded_model() -> Any:
    return models.load(None, dtype="float32", device="cpu").model.eval()


def _embedded_problem(digits: list[int]) -> Problem:
    """`Reverse: 3 1 4 ->` and ` 4 1 3`, as the embedded model's tokens."""
    encode, eos = _tokenizer().encode, _tokenizer().eos_token_id
    asked = "Reverse: " + " ".join(map(str, digits)) + " ->"
    wanted = "".join(f" {digit}" for digit in reversed(digits))
    return encode(asked), [*encode(wanted), eos]


def tiny() -> Task:
    """A Llama of about 0.3 million weights, made here."""
    return Task(
        _tiny_model, _tiny_problem, LENGTHS, EOS, PAD, max(LENGTHS) + 2,
        prompts=8, samples=8, warm_up_rows=64, warm_up_rate=2e-3, learning_rate=2e-4,
    )  # fmt: skip


def embedded() -> Task:
    """SmolLM2-135M-Instruct. A digit has two tokens: a space and it.

    The supervised warm-up trains all weights, policy gradients those of the last layers.
    """
    eos = _tokenizer().eos_token_id
    return Task(
        _embedded_model, _embedded_problem, FEWER, eos, eos, 2 * max(FEWER) + 2,
        prompts=4, samples=4, warm_up_rows=16, warm_up_rate=1e-4, learning_rate=4e-4,
        last_layers=4,
    )  # fmt: skip


TASKS = {"tiny": tiny, "embedded": embedded}


def reward(completion: list[int], wanted: list[int]) -> float:
    """Share of the wanted tokens that are in their place; 0 for what is too long."""
    if len(completion) > len(wanted):
        return 0.0
    hits = sum(a == b for a, b in zip(completion, wanted, strict=False))
    return hits / len(wanted)
