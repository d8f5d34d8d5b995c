"""Engines on models with windows, sinks, soft caps and experts: one answer under every load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from asking import conditions_of, settled
from sweeps import few

from detcheck.completion import Completion
from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.static import StaticEngine
from detcheck.models import LoadedModel
from detcheck.traffic import plan_trials

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 1,
    "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 512,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "window": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=7)),
    "windows, full layers, soft caps": lambda: T.Gemma2ForCausalLM(
        T.Gemma2Config(**SIZES, sliding_window=7)
    ),
    "sinks, windows, experts": lambda: T.GptOssForCausalLM(
        T.GptOssConfig(**SIZES, sliding_window=7, num_local_experts=4, num_experts_per_tok=2)
    ),
    "experts": lambda: T.Qwen3MoeForCausalLM(
        T.Qwen3MoeConfig(**SIZES, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48)
    ),
}


def completions(loaded: LoadedModel, engine: str, kernels: str) -> list[Completion]:
    """All completions of one prompt under loads of 1 and 5."""
    asked = settled(
        engine=engine, kernels=(kernels,), prompts=("Why is the sky blue?",), batch_sizes=(1, 5),
        completions=12, max_new_tokens=10, traffic="mixed",
    )  # fmt: skip
    running = ENGINES[engine](loaded, asked)
    trials = [
        trial for condition in conditions_of(asked) for trial in plan_trials(asked, condition)
    ]
    return [
        completion for trial in trials for _, completion in running.run_trial(trial).completions
    ]


def loaded_as(tiny_model: LoadedModel, name: str) -> LoadedModel:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    return replace(tiny_model, name=name, model=model)


def log_probabilities(found: list[Completion]) -> set[tuple[float, ...]]:
    assert all(one.top_two is not None for one in found)
    return {one.top_two.logprobs for one in found if one.top_two is not None}


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@few("engine", ENGINES)
@few("name", MODELS)
def test_log_probabilities_do_not_depend_on_the_load(
    tiny_model: LoadedModel, name: str, engine: str
) -> None:
    loaded = loaded_as(tiny_model, name)
    found = completions(loaded, engine, "batch-invariant")
    assert {one.observed_batch.rows_max for one in found if one.observed_batch} == {1, 5}
    assert len(log_probabilities(found)) == 1
    stock = completions(loaded, engine, "stock")
    assert {one.token_ids for one in stock} == {one.token_ids for one in found}


@pytest.mark.filterwarnings("ignore")
@few("engine", ENGINES)
def test_stock_kernels_give_several(tiny_model: LoadedModel, engine: str) -> None:
    """The twin: the same check sees stock experts differ."""
    found = completions(loaded_as(tiny_model, "experts"), engine, "stock")
    assert len(log_probabilities(found)) > 1
