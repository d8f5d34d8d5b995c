"""Under autocast, as trainers compute: weights in float32, products in 16 bits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from detcheck.kernels.attention import attention
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.settings import FAMILIES


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def decoded(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """(tokens, vocabulary): the same tokens one by one, with a cache."""
    out, rows = None, []
    for at in range(ids.shape[1]):
        cache = None if out is None else out.past_key_values
        out = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        rows.append(out.logits[0])
    return torch.cat(rows)


@torch.no_grad()
def test_decode_steps_equal_one_prefill_under_autocast() -> None:
    model = tiny()
    ids = torch.randint(64, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        stock = model(input_ids=ids).logits[0]
        assert not torch.equal(decoded(model, ids), stock)  # the twin
        with batch_invariant(FAMILIES) as mode:
            steps, whole = decoded(model, ids), model(input_ids=ids).logits[0]
            assert mode.proof().fault is None
    assert steps.dtype == stock.dtype
    assert torch.equal(steps, whole)
    torch.testing.assert_close(whole, stock, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_casts_its_inputs_as_stock_attention_does(dtype: torch.dtype) -> None:
    """A rotary embedding leaves queries and keys in float32, values come in 16 bits."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 16, generator=generator) for _ in range(3))
    value = value.to(dtype)
    with torch.autocast("cpu", dtype):
        out, _ = attention(torch.nn.Module(), query, key, value, None)
        stock = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert out.dtype == stock.dtype == dtype
    torch.testing.assert_close(out, stock.transpose(1, 2), atol=0.02, rtol=0.02)
    assert attention(torch.nn.Module(), query, key, value.float(), None)[0].dtype == torch.float32
