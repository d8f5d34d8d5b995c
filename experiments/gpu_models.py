"""Sections of `gpu.py` on whole models, through detcheck's continuous engine."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import torch
from gpu_clock import Clock

SETTINGS = ("stock", "batch-invariant", "batch-invariant:matmul", "batch-invariant:attention")
PROMPT = "Tell me about Richard Feynman"
TOKENS = 100


def end_to_end(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """An 8B-shaped Llama with random weights, 256 sequences of about 100 tokens at once.

    The shape of the source's 26 / 55 / 42 s table, on transformers' own scheduler: the stock side
    attends through SDPA with a dense mask over all requests, which is what that scheduler offers
    without flash-attn, and no measure of the best serving stack. Families alone say where the
    time goes.
    """
    del options
    loaded = random_llama()
    rows = [timed(loaded, kernels, 256) for kernels in SETTINGS if not clock.spent()]
    stock = next((row["elapsed_s"] for row in rows if row["kernels"] == "stock"), None)
    for row in rows:
        row["relative_cost"] = row["elapsed_s"] / stock if stock else None
    failures = [
        f"{row['kernels']}: {row['distinct']} distinct answers"
        for row in rows
        if row["kernels"] == "batch-invariant" and row["distinct"] != 1
    ]
    failures += unproved(rows)
    return {"rows": rows, "failures": failures, "sequences": 256, "new_tokens": TOKENS}


def unproved(rows: list[dict[str, Any]]) -> list[str]:
    """Settings whose own check of themselves did not pass."""
    return [
        f"{row['kernels']}: {row['self_check']}"
        for row in rows
        if row["kernels"] != "stock" and row["self_check"] != "passed"
    ]


def timed(loaded: Any, kernels: str, sequences: int) -> dict[str, Any]:
    """One trial of `sequences` equal requests, after its warm-up; and one request alone."""
    texts = Counter[Any]()
    engine, trials = engine_for(loaded, kernels, (1, sequences), 2 * sequences)
    for trial in trials:
        result = engine.run_trial(trial)
        texts.update(completion.token_ids for _, completion in result.completions)
    proof = engine.proof(kernels)
    engine.close()
    return {
        "kernels": kernels,
        "elapsed_s": result.elapsed_s,
        "tokens_per_second": result.generated_tokens / result.elapsed_s,
        "distinct": len(texts),
        "self_check": proof.self_check,
    }


def engine_for(
    loaded: Any, kernels: str, sizes: tuple[int, ...], completions: int, prompt: str = PROMPT
) -> tuple[Any, list[Any]]:
    """The continuous engine and one trial of each batch size, the smallest first."""
    orjson_or_json()
    from detcheck.engines.continuous import ContinuousEngine
    from detcheck.experiment import Experiment
    from detcheck.traffic import plan_trials

    experiment = Experiment(
        model=loaded.name,
        prompts=(prompt,),
        kernels=(kernels,),
        batch_sizes=sizes,
        completions=completions,
        max_new_tokens=TOKENS,
        device="cuda",
    )
    conditions = sorted(experiment.conditions(), key=lambda condition: condition.batch_size)
    trials = [plan_trials(experiment, condition)[0] for condition in conditions]
    return ContinuousEngine(loaded, experiment), trials


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


def random_llama() -> Any:
    """Llama-3-8B's shape, random bfloat16 weights, a tokenizer of bytes; never stops by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from detcheck.models import LoadedModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        eos_token_id=None,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    device = torch.device("cuda")
    return LoadedModel("Llama, 8B, random", model, byte_tokenizer(), torch.bfloat16, device)


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


def show_end_to_end(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['sequences']} sequences of {result['new_tokens']} new tokens, "
        "8B shape, random weights",
        "",
        "| kernels | s | tokens/s | against stock | distinct | self-check |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cost = f"{row['relative_cost']:.2f}" if row["relative_cost"] else "–"
        lines.append(
            f"| {row['kernels']} | {row['elapsed_s']:.1f} | {row['tokens_per_second']:.0f} | "
            f"{cost} | {row['distinct']} | {row['self_check']} |"
        )
    return lines


def variants(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """The 80-variants question to a real model: 1000 completions over many loads."""
    from detcheck import models
    from detcheck.errors import ModelError

    try:
        loaded = models.load(options.model, device="cuda")
    except ModelError as error:
        return {"skipped": str(error)}
    groups = [
        variants_of(loaded, kernels, clock)
        for kernels in ("stock", "batch-invariant")
        if not clock.spent()
    ]
    failures = [
        f"{group['kernels']}: {group['distinct']} distinct answers"
        for group in groups
        if group["kernels"] != "stock" and group["distinct"] != 1
    ]
    failures += unproved(groups)
    return {"model": loaded.name, "groups": groups, "failures": failures}


def variants_of(loaded: Any, kernels: str, clock: Clock) -> dict[str, Any]:
    """Distinct answers, their counts, and where they first part, of up to 1000 completions."""
    sizes = (1, 8, 32, 64, 128, 256, 511)
    engine, trials = engine_for(loaded, kernels, sizes, len(sizes) * max(sizes))
    answers = Counter[tuple[int, ...]]()
    elapsed = 0.0
    for trial in trials:
        if clock.spent():
            break
        result = engine.run_trial(trial)
        elapsed += result.elapsed_s
        answers.update(completion.token_ids for _, completion in result.completions)
    proof = engine.proof(kernels)
    engine.close()
    counts = [count for _, count in answers.most_common()]
    return {
        "kernels": kernels,
        "completions": sum(counts),
        "distinct": len(counts),
        "counts": counts,
        "first_divergence": first_divergence(list(answers)),
        "elapsed_s": elapsed,
        "self_check": proof.self_check,
    }


def first_divergence(answers: list[tuple[int, ...]]) -> int | None:
    """The first token at which any two answers differ; None where all are equal."""
    if len(answers) < 2:
        return None
    for position, tokens in enumerate(zip(*answers, strict=False)):
        if len(set(tokens)) > 1:
            return position
    return min(map(len, answers))


def show_variants(result: dict[str, Any]) -> list[str]:
    return [
        f"- {group['kernels']}: {group['distinct']} distinct of {group['completions']}, "
        f"the most common {max(group['counts'], default=0)} times, first divergence "
        f"{group['first_divergence']}, {group['elapsed_s']:.1f} s, self-check {group['self_check']}"
        for group in result["groups"]
    ]
