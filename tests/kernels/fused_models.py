"""Small models whose modules have fused forms, and what they compute with and without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as T
from transformers.models.llama import modeling_llama

from detcheck.kernels.fused import attention as fused_attention
from detcheck.kernels.fused import layer as fused_layer
from detcheck.kernels.fused import mlp as fused_mlp
from detcheck.kernels.fused import norm as fused_norm

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0,
    "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)),
    "llama with biases": lambda: T.LlamaForCausalLM(
        T.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
    ),
    "mistral, window": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=6)),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES)),
    "qwen3 experts": lambda: T.Qwen3MoeForCausalLM(
        T.Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    ),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SIZES)),
    "granite": lambda: T.GraniteForCausalLM(T.GraniteConfig(**SIZES)),
    "olmo2": lambda: T.Olmo2ForCausalLM(
        T.Olmo2Config(**{k: SIZES[k] for k in SIZES if "dim" not in k})
    ),
}
llama: Any = modeling_llama
TOKENS = torch.arange(2, 50).view(4, 12)
PADDED = torch.ones_like(TOKENS)
PADDED[1, :5] = PADDED[3, :1] = 0
Bits = list[torch.Tensor]


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, biases and norms."""
    torch.manual_seed(1)
    model = MODELS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 8)
    return model


def generated(model: Any) -> Bits:
    """Scores of a padded batch: of its prompts, and of each token that is decoded after them."""
    with torch.no_grad():
        out = model.generate(
            TOKENS, attention_mask=PADDED, max_new_tokens=6, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return [model(TOKENS[:1]).logits, *out.logits]


@contextmanager
def unfused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every module runs its own forward."""
    with monkeypatch.context() as patch:
        for part in (fused_attention, fused_layer, fused_mlp, fused_norm):
            patch.setattr(part, "is_plain", lambda x: False)
        yield


NORM = "normed"


def same(one: Bits, other: Bits) -> bool:
    return all(map(torch.equal, one, other))
