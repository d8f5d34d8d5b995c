"""Models whose rows depend on the longest row of their batch, if that is long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as T
from decoders import SIZES, TAKEN
from sweeps import few

from detcheck.errors import UsageError
from detcheck.kernels.length_limits import length_limits, longest_run, refuse_long_passes
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.positions import positions_of
from detcheck.models.tiny import config_of, shrunk, tiny_model

LIMIT = 32
LONGER = 50


def dynamic() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    sizes = SIZES | {"max_position_embeddings": LIMIT}
    return T.LlamaForCausalLM(T.LlamaConfig(**sizes, rope_parameters=rope))


def longrope() -> Any:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8, "original_max_position_embeddings": LIMIT,
    }  # fmt: skip
    config = T.Phi3Config(**SIZES, rope_parameters=rope, original_max_position_embeddings=LIMIT)
    return T.Phi3ForCausalLM(config)


def llama4() -> Any:
    config = shrunk(config_of("llama4_text"))
    config.floor_scale = LIMIT + 1
    return tiny_model(config)


MODELS: dict[str, Callable[[], Any]] = {"dynamic": dynamic, "longrope": longrope, "llama4": llama4}


def made(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def row_beside(model: Any, length: int) -> torch.Tensor:
    """Logits of a request of 20 tokens beside one of `length`, padded on the left."""
    rows = torch.tensor([[0] * (length - 20) + [*range(4, 24)], [*range(4, 4 + length)]])
    mask = torch.ones_like(rows)
    mask[0, : length - 20] = 0
    with torch.no_grad():
        return model(
            input_ids=rows, attention_mask=mask, position_ids=positions_of(mask, 0), use_cache=False
        ).logits[0, length - 20 :]


@few("name", MODELS)
def test_a_pass_beyond_the_limit_is_refused(name: str) -> None:
    model = made(name)
    assert longest_run(model) == LIMIT
    with batch_invariant(model=model) as mode:
        row = row_beside(model, LIMIT)
        assert torch.equal(row, row_beside(model, 20))
        with pytest.raises(UsageError, match=r"longer than 32 tokens, and a forward pass has 50"):
            row_beside(model, LONGER)
        with pytest.raises(UsageError, match="longer than 32 tokens"):
            model.base_model(input_ids=torch.ones(1, LIMIT + 1, dtype=torch.long))
        assert mode.proof().fault is None
    row_beside(model, LONGER)


@few("name", MODELS)
def test_without_the_model_the_proof_says_that_a_pass_was_too_long(name: str) -> None:
    """The twin: the rows differ then."""
    model = made(name)
    with batch_invariant() as mode:
        row = row_beside(model, LIMIT)
        for _ in range(3):  # watched for other ops no more
            row_beside(model, 20)
        assert mode.proof().fault is None
        assert not torch.equal(row_beside(model, LONGER), row)
        assert "longer than 32 tokens, and a forward pass has 50" in (mode.proof().fault or "")
    with batch_invariant() as mode:
        row_beside(model, LIMIT)
    assert mode.proof().fault is None


def test_tokens_in_the_cache_count() -> None:
    model = made("dynamic")
    stop = refuse_long_passes(model, "Dynamic")
    with torch.no_grad():
        cache = model(input_ids=torch.ones(1, LIMIT, dtype=torch.long)).past_key_values
        with pytest.raises(UsageError, match="a forward pass has 33"):
            model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
        stop()
        model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache)


def test_other_models_have_no_limit() -> None:
    model = TAKEN["Llama"]()
    assert not length_limits(model)
    assert not length_limits(torch.nn.Linear(2, 2))
    refuse_long_passes(model, "Llama")()
