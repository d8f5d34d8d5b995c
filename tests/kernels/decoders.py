"""Small decoders of known ops."""

from __future__ import annotations

from collections.abc import Callable

import transformers as T
from torch import nn

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 0,
}  # fmt: skip
TAKEN: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)),
    "Qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES, head_dim=16)),
    "Phi-3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**SIZES)),
    "Gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SIZES, head_dim=16)),
    "GPT-2": lambda: T.GPT2LMHeadModel(
        T.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    ),
}
