"""Tiny random models of any architecture."""

from __future__ import annotations

import pytest
import torch

from detcheck.errors import UsageError
from detcheck.kernels.short_runs import TOKENS
from detcheck.models.tiny import config_of, shrunk, tiny_model


def test_weights_that_transformers_keeps_in_float32_stay_so() -> None:
    config = shrunk(config_of("beam"))
    model = tiny_model(config, torch.bfloat16)
    whole = dict(tiny_model(config).named_parameters())
    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    kept = [name for name, dtype in dtypes.items() if dtype == torch.float32]
    assert kept
    assert all(name.endswith("mlp.gate.weight") for name in kept)
    assert torch.equal(model.get_parameter(kept[0]), whole[kept[0]])
    assert dtypes["lm_head.weight"] == torch.bfloat16


def test_a_model_of_cycles_has_as_many_layers_as_it_runs() -> None:
    config = shrunk(config_of("hrm_text"))
    cycles = config.H_cycles * (config.L_cycles + 1)
    assert config.num_hidden_layers == config.num_layers_per_stack * cycles
    model = tiny_model(config)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, config.vocab_size)


def test_a_config_without_all_its_own_defaults_is_completed() -> None:
    model = tiny_model(shrunk(config_of("dbrx")))
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, model.config.vocab_size)
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


def test_a_window_is_made_smaller_but_never_larger() -> None:
    config = config_of("mistral")
    for given, tiny in ((4096, 6), (6, 6), (1, 1), (0, 0), (None, None)):
        config.sliding_window = given
        assert shrunk(config).sliding_window == tiny


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [
        ("deepseek_v32", "index_topk"), ("doge", "keep_window_size"),
        ("inkling_text", "sliding_window_size"), ("modernbert-decoder", "local_attention"),
    ],
)  # fmt: skip
def test_a_query_sees_fewer_keys_than_a_short_run_has(kind: str, attribute: str) -> None:
    """Otherwise the short runs would not show how the others are left out."""
    config = config_of(kind)
    assert getattr(config, attribute) > len(TOKENS)
    assert getattr(shrunk(config), attribute) < len(TOKENS)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_more_experts_for_a_token_than_there_are_is_refused(kind: str) -> None:
    """A tiny config has enough of them, so the shrunk model would not show it."""
    config = config_of(kind)
    name = "n_routed_experts" if hasattr(config, "n_routed_experts") else "num_local_experts"
    setattr(config, name, 4)
    config.num_experts_per_tok = 4
    assert shrunk(config).num_experts_per_tok == 2
    config.num_experts_per_tok = 5
    with pytest.raises(UsageError, match="gives each token 5 experts, and the model has 4"):
        shrunk(config)
