"""Models and the engine for the sections on whole models.

The engine needs detcheck's own dependencies (msgspec among them), not only torch, triton and
transformers. Without them `variants` asks transformers itself, and `end to end` cannot run.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from gpu_sections.device import device

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
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""For a dry run, and for servers that are only asked whether they repeat themselves."""
VOCABULARY = 128256


def new_tokens() -> int:
    """New tokens of a completion."""
    return TOKENS if device.name == "cuda" else 3


def engine_for(
    loaded: Any,
    kernels: str | tuple[str, ...],
    sizes: tuple[int, ...],
    completions: int,
    *,
    tokens: int | None = None,
    graphs: bool = False,
) -> tuple[Any, list[Any]]:
    """The continuous engine and the first trial of each condition, the smallest batch first.

    Kernels alternate within a batch size. With `graphs`, decoding steps are CUDA graphs.
    """
    from detcheck.engines.continuous import ContinuousEngine
    from detcheck.experiment import Experiment
    from detcheck.grid import conditions
    from detcheck.targets import InProcess
    from detcheck.traffic import plan_trials

    experiment = Experiment(
        prompts=(PROMPT,),
        kernels=(kernels,) if isinstance(kernels, str) else kernels,
        batch_sizes=sizes,
        completions=completions,
        max_new_tokens=tokens or new_tokens(),
    )
    captures = "on" if graphs and device.name == "cuda" else "off"
    target = InProcess(model=loaded.name, device=device.name, cuda_graphs=captures)
    trials = [plan_trials(experiment, condition)[0] for condition in conditions(experiment, target)]
    return ContinuousEngine(loaded, experiment, target), trials


def engine_for_most(
    loaded: Any, kernels: tuple[str, ...], sizes: tuple[int, ...], completions: int, **options: Any
) -> tuple[Any, list[Any], list[str]]:
    """`engine_for`, and why it does without the last of `kernels`, if they are refused."""
    from detcheck.errors import DetcheckError

    failures = []
    for number in range(len(kernels), 0, -1):
        try:
            engine, trials = engine_for(loaded, kernels[:number], sizes, completions, **options)
        except DetcheckError as error:
            failures.append(f"{kernels[number - 1]}: {error}"[:300])
        else:
            return engine, trials, failures
    raise RuntimeError("; ".join(failures))


def shortened(trial: Any, tokens: int) -> Any:
    """The trial with fewer new tokens."""
    requests = tuple(replace(request, max_new_tokens=tokens) for request in trial.requests)
    return replace(trial, requests=requests)


def entry_s(kernels: str) -> float:
    """Seconds to enter and leave the mode, the self-check included; 0 for stock kernels."""
    from detcheck.kernels.in_force import kernels_in_force

    times = []
    for _ in range(3):
        started = time.perf_counter()
        with kernels_in_force(kernels, must_pass=False):
            device.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@cache
def large_llama() -> Any:
    """Llama-3-8B's shape with random weights; made once for all sections."""
    return random_llama("Llama, 8B, random", LARGE)


def random_llama(name: str, sizes: dict[str, int]) -> Any:
    """A Llama of random bfloat16 weights, a tokenizer of bytes; it never stops by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY if device.name == "cuda" else 512,
        max_position_embeddings=8192,
        eos_token_id=None,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
        **(sizes if device.name == "cuda" else TINY),
    )
    place = torch.device(device.name)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with place:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    parts = name, model, byte_tokenizer(), torch.bfloat16, place
    try:
        from detcheck.models import LoadedModel
    except ImportError:  # detcheck's own dependencies are not installed
        return SimpleNamespace(name=name, model=model, tokenizer=parts[2])
    return LoadedModel(*parts)


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


def saved_model(folder: Path, *, experts: bool) -> Path:
    """A folder with a small model of random weights, for servers to load."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "eos_token_id": None,
        "head_dim": 64,
        "dtype": torch.bfloat16,
        **(SMALL if device.name == "cuda" else TINY),
    }
    if experts:
        config = Qwen3MoeConfig(num_experts=16, num_experts_per_tok=4, moe_intermediate_size=256,
                                **sizes)  # fmt: skip
        model = Qwen3MoeForCausalLM(config)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def unproved(rows: list[dict[str, Any]]) -> list[str]:
    """Settings whose own check of themselves did not pass."""
    return [
        f"{row['kernels']}: {row['self_check']}"
        for row in rows
        if row["kernels"] != "stock" and row["self_check"] != "passed"
    ]
