"""Models and the engine for the sections on whole models."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import torch

PROMPT = "Tell me about Richard Feynman"
TOKENS = 100
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""Llama-3-8B."""
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""SmolLM2-135M."""


def engine_for(
    loaded: Any, kernels: str, sizes: tuple[int, ...], completions: int, prompt: str = PROMPT
) -> tuple[Any, list[Any]]:
    """The continuous engine and one trial of each batch size, the smallest first."""
    orjson_or_json()
    from detcheck.engines.continuous import ContinuousEngine
    from detcheck.experiment import Experiment
    from detcheck.grid import conditions
    from detcheck.targets import InProcess
    from detcheck.traffic import plan_trials

    experiment = Experiment(
        prompts=(prompt,),
        kernels=(kernels,),
        batch_sizes=sizes,
        completions=completions,
        max_new_tokens=TOKENS,
    )
    target = InProcess(model=loaded.name, device="cuda")
    trials = [plan_trials(experiment, condition)[0] for condition in conditions(experiment, target)]
    return ContinuousEngine(loaded, experiment, target), trials


def orjson_or_json() -> None:
    """detcheck keeps runs with orjson; where it is not installed the standard library will do."""
    try:
        import orjson  # noqa: F401
    except ImportError:
        stand_in: Any = ModuleType("orjson")
        stand_in.OPT_APPEND_NEWLINE, stand_in.OPT_INDENT_2 = 1, 2
        stand_in.JSONEncodeError, stand_in.JSONDecodeError = TypeError, json.JSONDecodeError
        stand_in.dumps = lambda value, option=0: (json.dumps(value) + "\n" * (option & 1)).encode()
        stand_in.loads = json.loads
        sys.modules["orjson"] = stand_in


def random_llama(name: str, sizes: dict[str, int]) -> Any:
    """A Llama of random bfloat16 weights, a tokenizer of bytes; never stops by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from detcheck.models import LoadedModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128256,
        max_position_embeddings=8192,
        eos_token_id=None,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
        **sizes,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    device = torch.device("cuda")
    return LoadedModel(name, model, byte_tokenizer(), torch.bfloat16, device)


def byte_tokenizer() -> Any:
    """One token a byte, the rest of the vocabulary without text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def unproved(rows: list[dict[str, Any]]) -> list[str]:
    """Settings whose own check of themselves did not pass."""
    return [
        f"{row['kernels']}: {row['self_check']}"
        for row in rows
        if row["kernels"] != "stock" and row["self_check"] != "passed"
    ]
