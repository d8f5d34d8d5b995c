"""A model of middle size with random weights, in a folder: for timings of other architectures.

    python experiments/random_model.py experts FOLDER      # 16 experts, 4 for a token (Qwen3-MoE)
    python experiments/random_model.py windows FOLDER      # windows of 64 keys (Mistral)
    python experiments/random_model.py full FOLDER         # the same without; or long-windows
    python experiments/random_model.py own-code FOLDER     # its own attention code (GPT-J)
    python experiments/random_model.py scans FOLDER        # scans in chunks (Mamba-2)
    python experiments/random_model.py latent FOLDER       # latent attention (DeepSeek-V3)
    python experiments/random_model.py linear FOLDER       # a gated delta rule (Qwen3-Next)
    python experiments/bench_kernels.py FOLDER             # experts and windows
    detcheck run FOLDER --engine static --traffic alone    # the others

It has the tokenizer of the embedded model, whose prompts it takes. Its answers mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPTJConfig,
    Mamba2Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from detcheck import models

SIZE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "experts": (
        Qwen3MoeConfig,
        SIZE | {"moe_intermediate_size": 384, "num_experts": 16, "num_experts_per_tok": 4},
    ),
    "windows": (MistralConfig, SIZE | {"intermediate_size": 1536, "sliding_window": 64}),
    "full": (MistralConfig, SIZE | {"intermediate_size": 1536, "sliding_window": None}),
    "long-windows": (MistralConfig, SIZE | {"intermediate_size": 1536, "sliding_window": 2048}),
    "own-code": (GPTJConfig, {"n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 2048}),
    "scans": (
        Mamba2Config,
        {"hidden_size": 512, "num_hidden_layers": 12, "num_heads": 16, "head_dim": 64},
    ),
    "latent": (
        DeepseekV3Config,
        SIZE
        | {
            **{"head_dim": 32, "num_key_value_heads": 8, "intermediate_size": 1536},
            **{"q_lora_rank": 192, "kv_lora_rank": 128, "qk_rope_head_dim": 32},
            **{"qk_nope_head_dim": 64, "v_head_dim": 64, "first_k_dense_replace": 12},
        },
    ),
    "linear": (
        Qwen3NextConfig,
        SIZE
        | {
            **{"intermediate_size": 1536, "moe_intermediate_size": 384, "num_experts": 0},
            **{"linear_num_key_heads": 8, "linear_num_value_heads": 8},
            **{"linear_key_head_dim": 64, "linear_value_head_dim": 64},
        },
    ),
}


def main() -> None:
    options = arguments()
    embedded = models.load(None, dtype="bfloat16", device="cpu")
    make, sizes = CONFIGS[options.kind]
    config = make(**sizes, vocab_size=embedded.model.config.vocab_size)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM  # transformers gives this method no types
    model = auto.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None  # every answer has the length that is asked for
    model.save_pretrained(options.folder)
    embedded.tokenizer.save_pretrained(options.folder)
    size = sum(each.numel() for each in model.parameters())
    print(f"{options.folder}: {size / 1e6:.0f} M parameters")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=CONFIGS)
    parser.add_argument("folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
