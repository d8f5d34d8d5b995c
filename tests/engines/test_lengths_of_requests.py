"""Engines on models that compute with their padding, and on those with positions of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from asking import conditions_of, settled
from sweeps import few

from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.static import StaticEngine
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.models import LoadedModel
from detcheck.models.tiny import config_of, shrunk
from detcheck.models.tiny import tiny_model as build
from detcheck.traffic import plan_trials


def loaded_as(loaded: LoadedModel, name: str) -> LoadedModel:
    config = shrunk(config_of(name))
    config.vocab_size, config.max_position_embeddings = 320, 512
    config.pad_token_id, config.eos_token_id = 1, 1
    return replace(loaded, name=name, model=build(config))


def asked(engine: str, **options: Any) -> Experiment:
    return settled(
        engine=engine, kernels=("stock", "batch-invariant"), prompts=("Why is the sky blue?", "Hi"),
        batch_sizes=(1, 5), completions=10, max_new_tokens=6, **options,
    )  # fmt: skip


def log_probabilities(engine: StaticEngine, experiment: Experiment) -> dict[Any, set[Any]]:
    """The distinct log-probabilities of all completions, by kernels and prompt."""
    found: dict[Any, set[Any]] = {}
    for condition in conditions_of(experiment):
        for trial in plan_trials(experiment, condition):
            for _, completion in engine.run_trial(trial).completions:
                assert completion.top_two is not None
                key = condition.kernels, condition.prompt_index
                found.setdefault(key, set()).add(completion.top_two.logprobs)
    return found


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_copies_of_one_prompt_give_one_answer(tiny_model: LoadedModel) -> None:
    experiment = asked("static")
    engine = StaticEngine(loaded_as(tiny_model, "bart"), experiment)
    found = log_probabilities(engine, experiment)
    engine.close()
    assert [len(found["batch-invariant", prompt]) for prompt in (0, 1)] == [1, 1]
    assert max(len(found["stock", prompt]) for prompt in (0, 1)) > 1


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_padding_is_refused_in_a_pass_until_the_engine_is_closed(tiny_model: LoadedModel) -> None:
    loaded = loaded_as(tiny_model, "bart")
    mixed = asked("static", traffic="mixed")
    engine = StaticEngine(loaded, asked("static"))
    trials = [trial for one in conditions_of(mixed) for trial in plan_trials(mixed, one)]
    padded = next(
        trial
        for trial in trials
        if trial.condition.kernels == "batch-invariant"
        and len({request.prompt for request in trial.requests}) > 1
    )
    with pytest.raises(UsageError, match="bart is held for requests of one length only, and a row"):
        engine.run_trial(padded)
    stock = replace(padded, condition=replace(padded.condition, kernels="stock"))
    engine.run_trial(stock)
    engine.close()
    assert not loaded.model._forward_pre_hooks


@pytest.mark.filterwarnings("ignore")
@few(("engine", "traffic"), [("static", "mixed"), ("continuous", "alone"), ("continuous", "mixed")])
def test_loads_of_several_lengths_are_refused_before_anything_runs(
    tiny_model: LoadedModel, engine: str, traffic: str
) -> None:
    kind = {"static": StaticEngine, "continuous": ContinuousEngine}[engine]
    with pytest.raises(UsageError, match='use `engine="static"` with `traffic="alone"`'):
        kind(loaded_as(tiny_model, "bart"), asked(engine, traffic=traffic))


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_padded_rows_get_the_positions_of_the_model(tiny_model: LoadedModel) -> None:
    """RoBERTa counts from behind its padding token, `generate` by itself from 0."""
    experiment = asked("static", traffic="mixed")
    engine = StaticEngine(loaded_as(tiny_model, "roberta"), experiment)
    inputs = engine._pad([(5, 6, 7), (5, 6, 7, 8, 9)])
    assert inputs["position_ids"].tolist() == [[2, 2, 2, 3, 4], [2, 3, 4, 5, 6]]
    found = log_probabilities(engine, experiment)
    engine.close()
    assert [len(found["batch-invariant", prompt]) for prompt in (0, 1)] == [1, 1]
    assert max(len(found["stock", prompt]) for prompt in (0, 1)) > 1


def test_other_models_get_no_positions(tiny_model: LoadedModel) -> None:
    engine = StaticEngine(tiny_model, asked("static", traffic="mixed"))
    assert set(engine._pad([(5, 6), (7,)])) == {"input_ids", "attention_mask"}
    engine.close()
    assert torch.is_tensor(engine._pad([(5,)])["input_ids"])


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "traffic"), [("mamba", "mixed"), ("qwen3_5_text", "alone"), ("nemotron_h", "alone")]
)
def test_scans_give_one_answer_and_prove_their_kernels(
    tiny_model: LoadedModel, name: str, traffic: str
) -> None:
    experiment = asked("static", traffic=traffic)
    engine = StaticEngine(loaded_as(tiny_model, name), experiment)
    found = log_probabilities(engine, experiment)
    proof = engine.proof("batch-invariant")
    engine.close()
    assert [len(found["batch-invariant", prompt]) for prompt in (0, 1)] == [1, 1]
    assert max(len(found["stock", prompt]) for prompt in (0, 1)) > 1
    assert (proof.missing, proof.outside) == ((), {})
    attended = proof.overrides["transformers::sdpa"]
    assert (attended == 0) == (name == "mamba")  # which has no attention to prove


def test_attention_that_does_not_run_is_still_missing(tiny_model: LoadedModel) -> None:
    """The twin: a model that has attention, and of which nothing was computed."""
    engine = StaticEngine(tiny_model, asked("static"))
    assert set(engine.proof("batch-invariant").missing) == {"matmul", "attention"}
    engine.close()


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_a_level_that_is_not_held_is_refused(tiny_model: LoadedModel) -> None:
    experiment = replace_kernels(asked("static"), "fully-invariant")
    with pytest.raises(UsageError, match='is not fully invariant: use `kernels="batch-invariant"`'):
        StaticEngine(loaded_as(tiny_model, "mamba2"), experiment)
    StaticEngine(loaded_as(tiny_model, "bart"), experiment).close()


def replace_kernels(experiment: Experiment, kernels: str) -> Experiment:
    return msgspec.structs.replace(experiment, kernels=("stock", kernels))
