"""Before measuring: a model that an engine cannot run is refused, with a sentence that helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import settled
from sweeps import few
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from detcheck import models
from detcheck.engines import first_tokens, in_process
from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.first_tokens import STEPS, OwnTokens, difference, own_tokens
from detcheck.engines.static import StaticEngine
from detcheck.errors import ModelError, OutOfMemory
from detcheck.kernels.in_force import kernels_in_force
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import plan_trials

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
PAGED = "its attention in transformers does not read the paged cache"
LATENT = "its latent attention (MLA) has no paged cache"
LINEAR = "its layers of kind linear_attention have no paged cache"


def tiny(kind: str, like: LoadedModel) -> LoadedModel:
    """A small random model of one of transformers' kinds."""
    made = CONFIG_MAPPING[kind]
    config = made(**{name: size for name, size in SIZES.items() if hasattr(made(), name)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    return LoadedModel(kind, model, like.tokenizer, model.dtype, torch.device("cpu"))


def start(loaded: LoadedModel, name: str, *kernels: str) -> Any:
    experiment = settled(
        prompts=("What is the sea?",), kernels=kernels or ("stock",), batch_sizes=(1, 2),
        completions=4, max_new_tokens=5,
    )  # fmt: skip
    return ENGINES[name](loaded, experiment, InProcess(engine=name))


@few(
    ("kind", "reason"),
    [
        ("stablelm", PAGED),
        ("nemotron", PAGED),
        ("deepseek_v3", LATENT),
        ("minicpm3", LATENT),
        ("qwen3_5_text", LINEAR),
        ("llama4_text", "its layers of kind chunked_attention have no paged cache"),
    ],
    every=3,
)
def test_what_continuous_batching_cannot_run_is_refused_and_static_runs_it(
    tiny_model: LoadedModel, kind: str, reason: str
) -> None:
    loaded = tiny(kind, tiny_model)
    with pytest.raises(ModelError) as caught:
        start(loaded, "continuous")
    sentence = str(caught.value)
    assert sentence.startswith(f"{kind} cannot run under the engine continuous: {reason} (")
    assert sentence.endswith('; use `engine="static"`.')
    engine = start(loaded, "static")
    condition = first_tokens.Condition(0, "stock", 1, 1)
    (_, completion), *_ = engine.run_trial(plan_trials(engine.experiment, condition)[0]).completions
    prompt = torch.tensor([engine.encode("What is the sea?")])
    with torch.inference_mode():
        alone = loaded.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False
        )
    assert completion.token_ids == tuple(alone[0, prompt.shape[1] :].tolist())


def test_a_refused_engine_keeps_no_weights(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []
    monkeypatch.setattr(in_process, "keep_packed_weights", lambda: lambda: freed.append("freed"))
    with pytest.raises(ModelError):
        start(tiny("stablelm", tiny_model), "continuous")
    assert freed == ["freed"]


@contextmanager
def sdpa_replaced(change: Any) -> Iterator[None]:
    """`change` gets the stock attention and gives another one."""
    table = AttentionInterface._global_mapping
    stock = table["sdpa"]
    table["sdpa"] = change(stock)
    try:
        yield
    finally:
        table["sdpa"] = stock


def blind_to_the_cache(stock: Any) -> Any:
    """Attends to the new tokens only, whatever is in the cache."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if kwargs.pop("cache", None) is None:
            return stock(module, query, key, value, mask, **kwargs)
        return stock(module, query, key, value, None, **kwargs | {"is_causal": True})

    return attend


def test_attention_that_ignores_the_cache_without_an_error_is_refused(
    tiny_model: LoadedModel,
) -> None:
    start(tiny_model, "continuous")
    with (
        sdpa_replaced(blind_to_the_cache),
        pytest.raises(ModelError, match=r"the scores of token 1 differ from the model's own by"),
    ):
        start(tiny_model, "continuous")


def blind_to_other_requests(stock: Any) -> Any:
    """Attends to the keys of all requests when it decodes; alone it is right."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if kwargs.get("cache") is not None and query.shape[-2] <= 2:
            mask = torch.ones_like(mask) if mask.dtype == torch.bool else torch.zeros_like(mask)
        return stock(module, query, key, value, mask, **kwargs)

    return attend


def test_attention_that_mixes_requests_is_refused(tiny_model: LoadedModel) -> None:
    with (
        sdpa_replaced(blind_to_other_requests),
        pytest.raises(ModelError, match=r"the scores of token 1 differ from the model's own by"),
    ):
        start(tiny_model, "continuous")


def test_code_that_takes_a_packed_pass_for_one_request_is_refused(tiny_model: LoadedModel) -> None:
    loaded = tiny("doge", tiny_model)
    with pytest.raises(ModelError, match=r"does not read the paged cache .*RuntimeError"):
        start(loaded, "continuous")
    start(loaded, "static")


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_that_an_engine_runs_is_left_as_it_was(tiny_model: LoadedModel, name: str) -> None:
    engine = start(tiny_model, name)
    assert type(engine.sampler).__name__ == "Sampler"
    assert not engine.is_observed
    assert not tiny_model.model._forward_hooks
    assert engine.proof("batch-invariant").overrides == {}, "the check is not part of the proof"


def test_kernels_that_compute_something_else_are_named(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def planted(setting: str, **options: Any) -> Iterator[Any]:
        with kernels_in_force(setting, **options) as mode:
            if setting == "stock":
                yield mode
                return
            head = tiny_model.model.lm_head
            hook = head.register_forward_hook(lambda _module, _args, output: output.flip(-1))
            try:
                yield mode
            finally:
                hook.remove()

    monkeypatch.setattr(first_tokens, "kernels_in_force", planted)
    with pytest.raises(ModelError, match=r"tiny computes something else under batch-invariant"):
        start(tiny_model, "static", "stock", "batch-invariant")


def test_attention_that_ignores_the_cache_is_seen_in_bfloat16_too(
    tiny_model: LoadedModel,
) -> None:
    diffllama = tiny("diffllama", tiny_model)
    half = replace(diffllama, model=diffllama.model.bfloat16(), dtype=torch.bfloat16)
    start(half, "static")
    with pytest.raises(ModelError, match="does not read the paged cache"):
        start(half, "continuous")


def test_a_model_that_fails_alone_is_one_sentence(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("planted\nfault")

    monkeypatch.setattr(tiny_model.model, "forward", broken)
    with pytest.raises(ModelError) as caught:
        start(tiny_model, "static")
    assert str(caught.value) == (
        "tiny fails in its own forward pass (RuntimeError: planted fault): no engine here can run "
        "it."
    )


def test_too_little_memory_is_no_fault_of_the_model(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(tiny_model.model, "forward", broken)
    with pytest.raises(OutOfMemory, match="tiny does not fit"):
        start(tiny_model, "continuous")


def test_a_prompt_that_nearly_fills_the_context_is_checked_as_far_as_it_goes(
    tiny_model: LoadedModel,
) -> None:
    with torch.inference_mode():
        assert len(own_tokens(tiny_model, (5,) * 20).token_ids) == STEPS
        assert len(own_tokens(tiny_model, (5,) * 511).token_ids) == 1


OWN = OwnTokens((4, 5), torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), 1e-4)


@pytest.mark.parametrize(
    ("rows", "dtype", "words"),
    [
        (OWN.scores, torch.float32, None),
        (OWN.scores + 7e-4, torch.float32, None),
        (OWN.scores + 0.02, torch.float32, "the scores of token 0 differ"),
        (OWN.scores + 0.02, torch.bfloat16, None),
        (OWN.scores + 0.3, torch.bfloat16, "the scores of token 0 differ"),
        (OWN.scores.flip(0), torch.bfloat16, "the scores of token 0 differ"),
        (torch.stack((OWN.scores[0], -OWN.scores[1])), torch.float16, "the scores of token 1"),
        (OWN.scores * torch.nan, torch.float32, "differ from the model's own by nan"),
        (OWN.scores[:1], torch.float32, "it gave 1 of 2 tokens asked for"),
    ],
)
def test_scores_agree_within_the_noise_of_rounding(rows: Any, dtype: Any, words: str) -> None:
    found = difference(OWN, list(rows), dtype)
    assert (found is None) == (words is None)
    if found is not None:
        assert words in found


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_real_model_in_bfloat16_is_not_refused(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After "Hi!" the cache moves the scores of the third token further than most prompts do."""
    found: list[str | None] = []

    def compared(*args: Any) -> str | None:
        found.append(difference(*args))
        return found[-1]

    experiment = settled(prompts=("Hi!",), kernels=("stock",), batch_sizes=(1,), completions=3)
    loaded = models.load(None, dtype="bfloat16")
    monkeypatch.setattr(first_tokens, "difference", compared)
    ENGINES[engine](loaded, experiment, InProcess(engine=engine)).close()
    assert found == [None, None]
    monkeypatch.setitem(first_tokens.LEAST_NOISE, torch.bfloat16, 0.0)
    with pytest.raises(ModelError, match="the scores of token"):
        ENGINES[engine](loaded, experiment, InProcess(engine=engine))
