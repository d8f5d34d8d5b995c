"""Models at the edges of their kinds: windows of two tokens, few experts, caches that roll."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as T
from sweeps import few

from detcheck.errors import UsageError
from detcheck.kernels.coverage import require_coverage
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.settings import FAMILIES

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 1,
    "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 512,
}  # fmt: skip
TOKENS = 13


def mistral(window: int) -> Any:
    return T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=window))


def experts(number: int, chosen: int) -> Any:
    config = T.Qwen3MoeConfig(
        **SIZES, num_experts=number, num_experts_per_tok=chosen, moe_intermediate_size=48
    )
    return T.Qwen3MoeForCausalLM(config)


def mixed_layers() -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = T.GptOssConfig(
        **SIZES, sliding_window=5, layer_types=kinds, num_local_experts=4, num_experts_per_tok=2
    )
    return T.GptOssForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "a window of two": lambda: mistral(2),
    "a window as long as the prompt": lambda: mistral(TOKENS),
    "a window longer than the prompt": lambda: mistral(200),
    "one expert": lambda: experts(1, 1),
    "every expert chosen": lambda: experts(4, 4),
    "more experts than tokens": lambda: experts(40, 3),
    "kinds of layers in turn": mixed_layers,
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if model.config._attn_implementation != "sdpa" and model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    return model


def ids(rows: int) -> torch.Tensor:
    return torch.randint(2, 64, (rows, TOKENS), generator=torch.Generator().manual_seed(1))


def rows_differ(model: Any) -> int:
    """Rows that give other scores alone than in a batch, or beside a longer row with padding."""
    given = ids(5)
    padded = torch.cat((torch.ones(1, 4, dtype=torch.long), given[:1]), 1)
    longer = torch.cat((ids(6)[5:, :4], given[1:2]), 1)
    mask = torch.ones(2, TOKENS + 4, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        alone = [model(row[None]).logits[0] for row in given]
        together = model(given).logits
        beside = model(
            torch.cat((padded, longer)), attention_mask=mask, position_ids=positions
        ).logits[0, 4:]
    differ = sum(not torch.equal(one, row) for one, row in zip(alone, together, strict=True))
    return differ + (not torch.equal(alone[0], beside))


@pytest.mark.filterwarnings("ignore")
@few("name", MODELS)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    model = made(name)
    require_coverage(model, name, TOKENS + 8)
    with batch_invariant():
        assert rows_differ(model) == 0


@pytest.mark.filterwarnings("ignore")
def test_stock_kernels_depend_on_it() -> None:
    """The twin."""
    assert any(rows_differ(made(name)) for name in MODELS)


def in_two_chunks(model: Any, cut: int, moved: int = 0) -> torch.Tensor:
    """Scores of the tokens from `cut` on, with the cache of those before.

    `moved` is a planted fault: how far the keys of the cache are out of place.
    """
    given = ids(1)
    with torch.inference_mode():
        cache = model(given[:, :cut], use_cache=True).past_key_values
        for layer in cache.layers:
            layer.keys = layer.keys.roll(moved, 2)
        return model(given[:, cut:], past_key_values=cache).logits[0]


@pytest.mark.filterwarnings("ignore")
@few("cut", [1, 3, 5, 8, 12])
@pytest.mark.parametrize("name", ["a window of two", "kinds of layers in turn"])
def test_a_cache_may_roll_in_the_middle_of_a_chunk(name: str, cut: int) -> None:
    """The second chunk begins inside the window of the first, and ends beyond it."""
    model = made(name)
    with batch_invariant(FAMILIES):
        with torch.inference_mode():
            whole = model(ids(1)).logits[0, cut:]
        assert torch.equal(in_two_chunks(model, cut), whole)


@pytest.mark.filterwarnings("ignore")
def test_keys_out_of_place_would_be_seen() -> None:
    """The twin."""
    model = made("kinds of layers in turn")
    with batch_invariant(FAMILIES):
        with torch.inference_mode():
            whole = model(ids(1)).logits[0, 5:]
        assert not torch.equal(in_two_chunks(model, 5, moved=1), whole)


def generated(model: Any, lengths: tuple[int, ...], cache: str | None) -> list[torch.Tensor]:
    """Scores of the tokens that each row decodes, with padding on the left."""
    longest = max(lengths)
    mask = torch.tensor([[0] * (longest - one) + [1] * one for one in lengths])
    rows = torch.ones_like(mask)
    for row, one in zip(rows, lengths, strict=True):
        row[longest - one :] = ids(1)[0, :one]
    options = {} if cache is None else {"cache_implementation": cache}
    out = model.generate(
        rows, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return list(torch.stack(out.logits, dim=1))


@pytest.mark.filterwarnings("ignore")
@few("name", ["every expert chosen", "kinds of layers in turn", "a window of two"])
def test_a_static_cache_gives_what_a_growing_one_gives(name: str) -> None:
    """Alone it has no mask, and free places behind the prompt; beside a longer row it has one."""
    model = made(name)
    with batch_invariant(), torch.no_grad():
        grown = generated(model, (5, 13), None)
        beside = generated(model, (5, 13), "static")
        alone = generated(model, (5,), "static")
        single = generated(model, (1,), "static"), generated(model, (1,), None)
    assert torch.equal(beside[0], grown[0])
    assert torch.equal(beside[1], grown[1])
    assert torch.equal(alone[0], grown[0])
    assert torch.equal(single[0][0], single[1][0])


@pytest.mark.filterwarnings("ignore")
def test_with_stock_kernels_a_static_cache_rounds_differently() -> None:
    """The twin: equal up to rounding, so that the check above looks at the same tokens."""
    model = made("every expert chosen")
    with torch.no_grad():
        grown = generated(model, (5, 13), None)[0]
        fixed = generated(model, (5,), "static")[0]
    assert not torch.equal(grown, fixed)
    assert torch.allclose(grown, fixed, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@few("name", ["kinds of layers in turn", "a window of two", "every expert chosen"])
def test_flex_attention_is_served_like_sdpa(name: str) -> None:
    """Its masks are those of `sdpa` meanwhile, and its own afterwards."""
    table = T.AttentionMaskInterface._global_mapping
    before = dict(table)
    model = made(name)
    with batch_invariant(), torch.no_grad():
        expected = model(ids(3)).logits
        model.set_attn_implementation("flex_attention")
        assert model.config._attn_implementation == "flex_attention"
        assert table != before
        assert torch.equal(model(ids(3)).logits, expected)
        assert rows_differ(model) == 0
    assert table == before


@pytest.mark.filterwarnings("ignore")
def test_attention_weights_are_refused_if_the_model_would_return_them() -> None:
    """`sdpa` returns none, in stock transformers either."""
    model = made("every expert chosen")
    model.set_attn_implementation("sdpa")
    with batch_invariant(), torch.no_grad():
        assert not model(ids(1), output_attentions=True).attentions
        model.set_attn_implementation("eager")
        with pytest.raises(UsageError, match="output_attentions=True"):
            model(ids(1), output_attentions=True)
    assert len(model(ids(1), output_attentions=True).attentions) == SIZES["num_hidden_layers"]
