"""Greedy means greedy: the model's own decoding options change no token, and are reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import conditions_of, settled
from sweeps import few
from transformers import GenerationConfig

from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.own_decoding import left_out, own_decoding_set_aside
from detcheck.engines.static import StaticEngine
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import plan_trials

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}
TOKENS = 40
"""Enough for a random model to repeat itself."""
OWN = {
    "repetition": {"repetition_penalty": 5.0},
    "beams": {"num_beams": 3, "length_penalty": 4.0},
    "suppressed": {"suppress_tokens": list(range(2, 200))},
    "longer": {"no_repeat_ngram_size": 1},
}


def answers(loaded: LoadedModel, name: str) -> set[Any]:
    experiment = settled(
        prompts=("What is the sea?",), kernels=("stock",), batch_sizes=(1,), completions=1,
        max_new_tokens=TOKENS,
    )  # fmt: skip
    engine = ENGINES[name](loaded, experiment, InProcess(engine=name))
    (trial,) = plan_trials(experiment, conditions_of(experiment)[0])
    return {completion.token_ids for _, completion in engine.run_trial(trial).completions}


def own_generate(loaded: LoadedModel) -> tuple[int, ...]:
    """The answer of `generate` with the model's own options."""
    ids = torch.tensor([loaded.tokenizer("What is the sea?")["input_ids"]])
    with torch.inference_mode():
        out = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
        )
    return tuple(out[0, ids.shape[1] :].tolist())


@few("own", OWN.values(), ids=OWN)
def test_greedy_is_greedy_in_every_engine(
    tiny_model: LoadedModel, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = answers(tiny_model, "static")
    config = GenerationConfig(eos_token_id=1, pad_token_id=1, **own)
    monkeypatch.setattr(tiny_model.model, "generation_config", config)
    assert own_generate(tiny_model) not in plain, "the planted options must be able to matter"
    for name in ENGINES:
        assert answers(tiny_model, name) == plain
    assert tiny_model.model.generation_config is config, "the model is left as it was"


def test_the_models_own_options_are_back_after_a_failure(tiny_model: LoadedModel) -> None:
    own = tiny_model.model.generation_config

    def interrupted() -> None:
        with own_decoding_set_aside(tiny_model.model):
            assert tiny_model.model.generation_config is not own
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tiny_model.model.generation_config is own


def test_options_that_are_left_out_are_named() -> None:
    config = GenerationConfig(
        repetition_penalty=1.3, num_beams=3, do_sample=True, temperature=0.7, top_p=0.8,
        eos_token_id=1, max_length=20,
    )  # fmt: skip
    greedy = left_out(config, sampled=False)
    assert greedy == {"num_beams": "3, left out", "repetition_penalty": "1.3, left out"}
    assert left_out(config, sampled=True) == greedy | {"top_p": "0.8, left out"}
    assert left_out(config, sampled=True, stated={"top_p": 0.5}) == greedy


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0},
        {"bos_token_id": 0, "pad_token_id": 1, "max_new_tokens": 7, "use_cache": True},
    ],
)
def test_options_that_change_nothing_are_not_named(own: dict[str, Any]) -> None:
    assert left_out(GenerationConfig(**own), sampled=True) == {}


def test_the_identity_holds_them(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(eos_token_id=1, repetition_penalty=1.3)
    monkeypatch.setattr(tiny_model.model, "generation_config", config)
    experiment = settled(kernels=("stock",), batch_sizes=(1,), completions=1)
    identity = StaticEngine(tiny_model, experiment).model_identity()
    assert identity.decoding == {"repetition_penalty": "1.3, left out"}
