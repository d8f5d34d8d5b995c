"""The cost of observing: detcheck's continuous engine against transformers' own loop.

    python experiments/bench_harness.py [--pairs 7] [--json]

Both answer the same requests with the same model and batching, one after the other, in pairs. The
bare side steps transformers' batch processor as `generate_batch` does. The observed side is a trial
as `detcheck run` does it: planned arrivals, observed batches, the two best tokens and the
log-probabilities of every step, fingerprints, text, and the trial written to a run directory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
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
from detcheck.grid import Condition, conditions
from detcheck.rundir import RunWriter
from detcheck.targets import InProcess
from detcheck.traffic import Trial, plan_trials

BATCH_SIZES = (1, 4, 16)


def main() -> None:
    options = arguments()
    experiment = Experiment(
        kernels=("stock",), batch_sizes=BATCH_SIZES, completions=33, max_new_tokens=options.tokens
    )
    target = InProcess()
    engine = ContinuousEngine(models.load(), experiment, target)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter.create(
            Path(folder) / "run", experiment, target, {}, run_id="bench", version="0", created=""
        )
        bare = BareLoop(engine)
        for index, condition in enumerate(conditions(experiment, target)):
            trial = plan_trials(experiment, condition)[0]
            observed = observe(engine, writer, index, trial)
            rows.append(compare(condition, partial(bare.run, trial), observed, options.pairs))
        writer.close()
    show(rows, as_json=options.json)


class BareLoop:
    """transformers' batch processor without detcheck's observation."""

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
        """Answer the requests of `trial`; returns the number of generated tokens."""
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
        num_tokens = 0
        for _ in trial.requests:
            num_tokens += len(results.get().generated_tokens)
        return num_tokens


def observe(
    engine: ContinuousEngine, writer: RunWriter, index: int, trial: Trial
) -> Callable[[], int]:
    """A function that runs `trial`, writes it to disk as the runner does, and counts its tokens."""

    def run() -> int:
        result = engine.run_trial(trial, lambda _: None)
        totals = {"elapsed_s": result.elapsed_s, "generated_tokens": result.generated_tokens}
        writer.append_trial(index, trial.index, result.completions, **totals)
        return int(result.generated_tokens)

    return run


def compare(
    condition: Condition, bare: Callable[[], int], observed: Callable[[], int], pairs: int
) -> dict[str, float]:
    """Times of both sides in seconds, and their ratio over `pairs` pairs.

    The order changes from pair to pair. The first pair only warms up and is not counted.
    """
    times: dict[str, list[float]] = {"bare": [], "observed": []}
    for pair in range(pairs + 1):
        order = [("bare", bare), ("observed", observed)]
        tokens = []
        for name, run in order if pair % 2 else reversed(order):
            started = perf_counter()
            tokens.append(run())
            if pair:
                times[name].append(perf_counter() - started)
        if tokens[0] != tokens[1]:
            raise SystemExit(
                f"{condition.condition_id}: the two sides generated {tokens} tokens, so their "
                "times cannot be compared."
            )
    ratios = [w / b for b, w in zip(times["bare"], times["observed"], strict=True)]
    return {
        "batch_size": condition.batch_size,
        "bare_s": statistics.median(times["bare"]),
        "observed_s": statistics.median(times["observed"]),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def show(rows: list[dict[str, float]], *, as_json: bool) -> None:
    """Print a table, or JSON with the environment."""
    bare = sum(row["bare_s"] for row in rows)
    total = sum(row["bare_s"] * row["ratio_median"] for row in rows) / bare
    if as_json:
        machine = environment.collect("cpu")
        print(json.dumps({"rows": rows, "total_ratio": total, "environment": machine}, indent=2))
        return
    print("batch size   bare s  observed s  ratio (median, min to max of the pairs)")
    for row in rows:
        print(
            f"{row['batch_size']:10.0f} {row['bare_s']:8.3f} {row['observed_s']:11.3f}  "
            f"{row['ratio_median']:.3f}  {row['ratio_min']:.3f} to {row['ratio_max']:.3f}"
        )
    print(f"in total, each batch size weighted by its bare time: {total:.3f}")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
