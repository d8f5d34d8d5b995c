"""A model of middle size with random weights, in a folder: for timings of other architectures.

    python experiments/random_model.py experts FOLDER    # 16 experts, 4 for each token (Qwen3-MoE)
    python experiments/random_model.py windows FOLDER    # windows of 64 keys, all layers (Mistral)
    python experiments/bench_kernels.py FOLDER

It has the tokenizer of the embedded model, whose prompts it takes. What it says means nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig, Qwen3MoeConfig

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


def main() -> None:
    options = arguments()
    embedded = models.load(None, dtype="bfloat16", device="cpu")
    vocabulary = embedded.model.config.vocab_size
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM  # transformers gives this method no types
    model = made.from_config(config(options.kind, vocabulary), dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None  # every answer has the length that is asked for
    model.save_pretrained(options.folder)
    embedded.tokenizer.save_pretrained(options.folder)
    size = sum(each.numel() for each in model.parameters())
    print(f"{options.folder}: {size / 1e6:.0f} M parameters")


def config(kind: str, vocabulary: int) -> PreTrainedConfig:
    """The architecture, with the vocabulary of the tokenizer."""
    if kind == "windows":
        return MistralConfig(
            vocab_size=vocabulary, intermediate_size=1536, sliding_window=64, **SIZE
        )
    return Qwen3MoeConfig(
        vocab_size=vocabulary,
        moe_intermediate_size=384,
        num_experts=16,
        num_experts_per_tok=4,
        **SIZE,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("experts", "windows"))
    parser.add_argument("folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
