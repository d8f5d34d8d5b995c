"""What watching costs: detcheck's continuous engine against transformers' own loop, in pairs.

    python experiments/bench_harness.py [--pairs 7] [--json]

Both answer the same requests with the same batching and model. The bare side steps transformers'
batch processor as `generate_batch` does. The other side is a trial as `detcheck run` does it:
planned arrivals, observed batches, the best two tokens and log-probabilities of every step,
fingerprints, detokenised text, and the trial committed to a run directory on disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from detcheck import environment, models
from detcheck.engines.continuous import (
    ContinuousEngine,
    batching_config,
    generation_config,
    paged_attention,
)
from detcheck.experiment import Experiment
from detcheck.grid import Condition
from detcheck.rundir import RunWriter
from detcheck.traffic import Trial, plan_trials

BATCH_SIZES = (1, 4, 16)


def main() -> None:
    options = arguments()
    experiment = Experiment(
        kernels=("stock",), batch_sizes=BATCH_SIZES, completions=33, max_new_tokens=options.tokens
    )
    engine = ContinuousEngine(models.load(), experiment)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter.create(
            Path(folder) / "run", experiment, {}, run_id="bench", version="0", created=""
        )
        bare = BareLoop(engine)
        for index, condition in enumerate(experiment.conditions()):
            trial = plan_trials(experiment, condition)[0]
            watched = watch(engine, writer, index, trial)
            rows.append(
                compare(condition, lambda trial=trial: bare.run(trial), watched, options.pairs)
            )
        writer.close()
    show(rows, as_json=options.json)


class BareLoop:
    """transformers' batch processor with nothing of detcheck's in it."""

    def __init__(self, engine: ContinuousEngine):
        self.engine = engine
        self.model = engine.loaded.model
        with paged_attention(self.model):
            self.manager = self.model.init_continuous_batching(
                generation_config(engine), batching_config(engine)
            )
        self.processor = self.manager._create_batch_processor()
        self.manager.batch_processor = self.processor

    def run(self, trial: Trial) -> int:
        for number, request in enumerate(trial.requests):
            self.manager.add_request(
                list(self.engine.encode(request.prompt)),
                request_id=f"request-{number}",
                max_new_tokens=request.max_new_tokens,
            )
        with torch.inference_mode(), paged_attention(self.model):
            while self.processor.prepare_next_batch():
                self.processor._generation_step(self.model)
                self.processor.update_batch()
        results = self.manager.output_router.output_queue
        return sum(len(results.get().generated_tokens) for _ in trial.requests)


def watch(
    engine: ContinuousEngine, writer: RunWriter, index: int, trial: Trial
) -> Callable[[], int]:
    """One trial run and committed, as the runner does it."""

    def run() -> int:
        result = engine.run_trial(trial, lambda _: None)
        writer.append_trial(
            index,
            trial.index,
            result.completions,
            elapsed_s=result.elapsed_s,
            generated_tokens=result.generated_tokens,
        )
        return result.generated_tokens

    return run


def compare(
    condition: Condition, bare: Callable[[], int], watched: Callable[[], int], pairs: int
) -> dict[str, float]:
    """Time both in turn, the order changing from pair to pair; the first pair warms up."""
    times: dict[str, list[float]] = {"bare": [], "watched": []}
    for pair in range(pairs + 1):
        order = [("bare", bare), ("watched", watched)]
        tokens = []
        for name, run in order if pair % 2 else reversed(order):
            started = perf_counter()
            tokens.append(run())
            if pair:
                times[name].append(perf_counter() - started)
        if tokens[0] != tokens[1]:
            raise SystemExit(f"not the same work: {tokens} tokens at {condition.condition_id}")
    ratios = [w / b for b, w in zip(times["bare"], times["watched"], strict=True)]
    return {
        "batch_size": condition.batch_size,
        "bare_s": statistics.median(times["bare"]),
        "watched_s": statistics.median(times["watched"]),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def show(rows: list[dict[str, float]], *, as_json: bool) -> None:
    bare = sum(row["bare_s"] for row in rows)
    total = sum(row["bare_s"] * row["ratio_median"] for row in rows) / bare
    if as_json:
        machine = environment.collect("cpu")
        print(json.dumps({"rows": rows, "total_ratio": total, "environment": machine}, indent=2))
        return
    print("batch size   bare s  watched s   ratio (median, min to max of the pairs)")
    for row in rows:
        print(
            f"{row['batch_size']:10.0f} {row['bare_s']:8.3f} {row['watched_s']:10.3f}   "
            f"{row['ratio_median']:.3f}  {row['ratio_min']:.3f} to {row['ratio_max']:.3f}"
        )
    print(f"in total, each size by its bare time: {total:.3f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
