"""Section `graphs`: continuous batching with its decoding captured in CUDA graphs, and without."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from dataclasses import fields
from typing import Any

from gpu_sections.clock import Clock
from gpu_sections.common import noted
from gpu_sections.device import device
from gpu_sections.loading import PROMPT, engine_for, large_llama, new_tokens, shortened

LOADS = (1, 16, 64)
KERNELS = ("stock", "batch-invariant")
NEW_TOKENS = 40
PAGE_TOKENS = 32
SPARE_PAGES = 8
BATCH_TOKENS = 4096
Rows = list[dict[str, Any]]


def decode_graphs(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of an 8B-shaped model at several loads, with CUDA graphs and without.

    Under invariant kernels a graph must not change a token: the answers with graphs are compared
    with those without.
    """
    del options
    rows: Rows = []
    failures: list[str] = []
    for graphs in (False, True):
        if not clock.spent():
            add_rows(rows, failures, graphs, clock)
    answers = {row["answer"] for row in rows if row["kernels"] != "stock"}
    failures += [f"batch-invariant: {len(answers)} answers over loads and graphs"] * (
        len(answers) > 1
    )
    whole = 2 * len(KERNELS) * len(device.few(LOADS))
    return {"rows": rows, "failures": failures, "unfinished": len(rows) < whole}


def add_rows(rows: Rows, failures: list[str], graphs: bool, clock: Clock) -> None:
    """A row for each setting and load; what fails costs itself alone."""
    loaded, loads = large_llama(), tuple(device.few(LOADS))
    tokens = min(NEW_TOKENS, new_tokens())
    try:
        engine, trials = engine_for(
            loaded, KERNELS, loads, 2 * sum(loads), tokens=tokens, graphs=graphs
        )
    except ImportError:  # detcheck's own dependencies are not installed
        for kernels, load in itertools.product(KERNELS, loads):
            with noted(failures, f"{kernels}, graphs {graphs}, load {load}"):
                if not clock.spent():
                    rows.append(generated(loaded, kernels, graphs, load))
        return
    try:
        for trial in trials:
            with noted(failures, f"{trial.condition.condition_id}, graphs {graphs}"):
                if not clock.spent():
                    rows.append(by_engine(engine, trial, graphs))
    finally:
        engine.close()


def by_engine(engine: Any, trial: Any, graphs: bool) -> dict[str, Any]:
    """One row, the second time it is asked: the first one captures graphs and chooses tiles."""
    warm_up = trial if graphs else shortened(trial, 5)
    engine.run_trial(warm_up)
    result = engine.run_trial(trial)
    answers = [completion.token_ids for _, completion in result.completions]
    condition = trial.condition
    return row_of(condition.kernels, graphs, condition.batch_size, answers, result.elapsed_s)


def row_of(
    kernels: str, graphs: bool, load: int, answers: list[tuple[int, ...]], elapsed: float
) -> dict[str, Any]:
    """One row as plain data."""
    return {
        "kernels": kernels,
        "graphs": graphs,
        "load": load,
        "tokens_per_second": sum(map(len, answers)) / elapsed,
        "ms_a_token": 1000 * elapsed / max(map(len, answers)),
        "distinct": len(set(answers)),
        "answer": hash(answers[0]),
    }


def generated(loaded: Any, kernels: str, graphs: bool, load: int) -> dict[str, Any]:
    """One row by transformers' own loop, the second time `load` equal requests are asked."""
    from detcheck import batch_invariant

    tokens = loaded.tokenizer(PROMPT)["input_ids"]
    mode = batch_invariant() if kernels != "stock" else contextlib.nullcontext()
    with mode:
        for _ in range(2):  # the first captures graphs and chooses tiles
            started = time.perf_counter()
            answers = answers_of(loaded, [tokens] * load, graphs)
            device.synchronize()
            elapsed = time.perf_counter() - started
    return row_of(kernels, graphs, load, answers, elapsed)


def answers_of(loaded: Any, prompts: list[list[int]], graphs: bool) -> list[tuple[int, ...]]:
    """The new tokens of each prompt, by transformers' `generate_batch`."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    known = {field.name for field in fields(ContinuousBatchingConfig)}
    page = "page_size" if "page_size" in known else "block_size"  # newer than 5.17, or not
    pages = -(-(max(map(len, prompts)) + new_tokens()) // PAGE_TOKENS)
    wanted = {
        "use_cuda_graph": graphs, "use_async_batching": False, "allow_block_sharing": False,
        "auto_switch_to_flash": False, page: PAGE_TOKENS,
        "num_blocks": len(prompts) * pages + SPARE_PAGES, "max_batch_tokens": BATCH_TOKENS,
        "max_requests_per_batch": len(prompts),
    }  # fmt: skip
    batching = ContinuousBatchingConfig(**{k: v for k, v in wanted.items() if k in known})
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens(), eos_token_id=-1, pad_token_id=0
    )
    outputs = loaded.model.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=batching,
        progress_bar=False,
    )  # fmt: skip
    return [tuple(output.generated_tokens) for output in outputs.values()]


def show_graphs(result: dict[str, Any]) -> list[str]:
    """One line a setting and load."""
    lines = [
        "8B shape, random weights",
        "",
        "| kernels | load | CUDA graphs | tokens/s | ms a token | distinct |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {row['kernels']} | {row['load']} | {'yes' if row['graphs'] else 'no'} | "
        f"{row['tokens_per_second']:.0f} | {row['ms_a_token']:.1f} | {row['distinct']} |"
        for row in sorted(result["rows"], key=lambda row: (row["load"], row["kernels"] != "stock"))
    ]
    return lines
