"""Models whose rows depend on padding, or on the longest request beside them, are found."""

from __future__ import annotations

import pytest
import torch
import transformers as T
from decoders import SIZES, TAKEN
from sweeps import few
from torch import nn

from detcheck.errors import UsageError
from detcheck.kernels.coverage import (
    coverage,
    require_coverage,
)
from detcheck.kernels.length_limits import length_limits, longest_run
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.short_runs import long_padding_agrees
from detcheck.kernels.token_sums import TokenSums
from detcheck.models.tiny import config_of, shrunk, tiny_model


class SeesPadding(nn.Module):
    """Adds the first token of the row, be it padding, to all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x[:, :1]


def test_a_model_that_computes_with_its_padding_is_refused() -> None:
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].post_attention_layernorm = SeesPadding()
    found = coverage(model)
    assert not found.uncovered
    assert found.padding_matters
    with pytest.raises(UsageError, match="Leaky computes with its padding, so it is held for "):
        require_coverage(model, "Leaky")
    assert not coverage(TAKEN["Llama"]().eval()).padding_matters


class SumsByHand(nn.Module):
    """Attention whose softmax is written out, over the keys or over heads and keys together.

    Its sums add several terms at a time, so a padded key moves the terms behind it.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: T.Cache | None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        queries = hidden_states.unflatten(-1, (4, -1)).transpose(1, 2)
        keys = values = queries
        if past_key_values is not None:
            keys, values = past_key_values.update(queries, queries, 0)
        if attention_mask is None:  # all keys up to the query's own
            shape = queries.shape[2], keys.shape[2]
            attention_mask = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
        scores = (queries @ keys.transpose(-1, -2)).masked_fill(~attention_mask, -1e9)
        scores = scores.transpose(1, 2)
        if self.kind == "flattened rows":
            shape, rows = scores.shape, scores.reshape(-1, scores.shape[-1])
            weights = rows.softmax(-1).reshape(shape)
        else:
            dims = (-2, -1) if self.kind == "heads and keys" else (-1,)
            weights = (scores - scores.amax(dims, keepdim=True)).exp()
            weights = weights / weights.sum(dims, keepdim=True)
        return (weights.transpose(1, 2) @ values).transpose(1, 2).flatten(-2), None


@few("dtype", [torch.bfloat16, torch.float32], ids=str)
@few("kind", ["heads and keys", "keys", "flattened rows"])
def test_sums_over_keys_by_hand_are_seen_to_depend_on_padding(
    kind: str, dtype: torch.dtype
) -> None:
    """In 16 bits the bits of a few tokens do not show it."""
    model = TAKEN["Llama"]().eval().to(dtype)
    model.model.layers[0].self_attn = SumsByHand(kind)
    found = coverage(model)
    assert not found.uncovered
    assert found.padding_matters
    with batch_invariant(), torch.no_grad():
        assert not long_padding_agrees(model)


def test_a_sum_over_keys_is_seen_at_any_shape() -> None:
    x = torch.ones(2, 3, 31, dtype=torch.bfloat16)
    summed = (
        lambda: x.sum(-1), lambda: x.sum((1, 2)), lambda: x.flatten(1).mean(1), x.sum,
        lambda: x[0].softmax(-1), lambda: x.norm(dim=-1), lambda: x.logsumexp(2),
    )  # fmt: skip
    for call in summed:
        with TokenSums(31) as sums:
            call()
        assert sums.found
    for call in (lambda: x.sum(1), lambda: x.softmax(-1), lambda: x.long().sum(-1), x.exp):
        with TokenSums(31) as sums:
            call()
        assert not sums.found


def test_positions_that_depend_on_the_longest_request_are_refused() -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8, "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = T.Phi3Config(**SIZES, rope_parameters=rope, original_max_position_embeddings=32)
    model = T.Phi3ForCausalLM(config).eval()
    require_coverage(model, "Phi", longest=32)
    with pytest.raises(UsageError, match="32 tokens, and the longest request here may have 33"):
        require_coverage(model, "Phi", longest=33)


@pytest.mark.parametrize(
    ("name", "changes", "limit"),
    [("llama4_text", {"floor_scale": 32}, 31), ("inkling_text", {"log_scaling_n_floor": 32}, 32)],
)
def test_scales_by_positions_that_count_the_padding_are_refused(
    name: str, changes: dict[str, int], limit: int
) -> None:
    config = shrunk(config_of(name))
    for attribute, value in changes.items():
        setattr(config, attribute, value)
    model = tiny_model(config)
    assert longest_run(model) == limit
    require_coverage(model, name, longest=limit)
    with pytest.raises(UsageError, match=f"longer than {limit} tokens"):
        require_coverage(model, name, longest=limit + 1)


@pytest.mark.parametrize("name", ["xlnet", "cpmant"])
def test_padding_that_short_runs_do_not_show_is_known(name: str) -> None:
    found = coverage(tiny_model(shrunk(config_of(name))))
    assert found.one_length
    assert not found.batch_matters


def test_sparse_blocks_that_move_with_the_padding_are_refused() -> None:
    config = shrunk(config_of("big_bird"))
    config.block_size, config.num_random_blocks = 4, 1
    model = tiny_model(config)
    require_coverage(model, "Bird", longest=28)
    with pytest.raises(UsageError, match="sparse blocks once the batch has more than 28 tokens"):
        require_coverage(model, "Bird", longest=29)
    config.attention_type = "original_full"
    assert not length_limits(tiny_model(config))
