"""What batch-invariant kernels cost: the same trials under each kernels setting, in turn.

    python experiments/bench_kernels.py [MODEL] [--batch-sizes 1,4,16] [--rounds 5] [--json]
        [--kernels batch-invariant,batch-invariant:matmul,…]

One engine answers the same trial under stock kernels and under the others in turn, the order
turning from round to round, so that drift of the machine's speed falls on all. Ratios are of time
a generated token, against stock in the same round; the total is of one trial at each batch size.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict

from detcheck import environment, models
from detcheck.engines.continuous import ContinuousEngine
from detcheck.experiment import Experiment
from detcheck.grid import conditions
from detcheck.kernels.settings import BATCH_INVARIANT, CORE_FAMILIES, FULLY_INVARIANT, STOCK
from detcheck.targets import InProcess, Target
from detcheck.traffic import Trial, plan_trials

SETTINGS = (BATCH_INVARIANT, f"{BATCH_INVARIANT}:{'+'.join(CORE_FAMILIES)}", FULLY_INVARIANT)


def main() -> None:
    options = arguments()
    sizes = tuple(int(size) for size in options.batch_sizes.split(","))
    target = InProcess(model=options.model, dtype=options.dtype, device=options.device)
    experiment = Experiment(
        kernels=(STOCK, *options.kernels.split(",")),
        batch_sizes=sizes,
        completions=sum(sizes),
        max_new_tokens=options.tokens,
        traffic=options.traffic,
    )
    loaded = models.load(options.model, dtype=options.dtype, device=options.device)
    engine = ContinuousEngine(loaded, experiment, target)
    trials = first_trials(experiment, target)
    rows = [measure(engine, trials[size], options.rounds) for size in sizes]
    show(rows, experiment.kernels[1:], as_json=options.json)


def first_trials(experiment: Experiment, target: Target) -> dict[int, dict[str, Trial]]:
    """The first trial of each condition, by batch size and kernels setting."""
    trials: dict[int, dict[str, Trial]] = defaultdict(dict)
    for condition in conditions(experiment, target):
        trials[condition.batch_size][condition.kernels] = plan_trials(experiment, condition)[0]
    return trials


def measure(engine: ContinuousEngine, trials: dict[str, Trial], rounds: int) -> dict[str, float]:
    """Time `trials` (by kernels setting, of one batch size) in turn, `rounds` times.

    Returns the batch size, stock's tokens a second, and each setting's median ratio to stock.
    """
    settings = tuple(trials)
    batch_size = trials[STOCK].condition.batch_size
    seconds = defaultdict(list)
    for number in range(rounds):
        turn = number % len(settings)
        for kernels in (*settings[turn:], *settings[:turn]):
            result = engine.run_trial(trials[kernels])
            seconds[kernels].append(result.elapsed_s / result.generated_tokens)
    ratios = {
        kernels: statistics.median(
            time / stock for time, stock in zip(seconds[kernels], seconds[STOCK], strict=True)
        )
        for kernels in settings[1:]
    }
    stock = statistics.median(seconds[STOCK])
    return {"batch_size": batch_size, "stock_tokens_per_second": 1 / stock, **ratios}


def totals(rows: list[dict[str, float]], settings: tuple[str, ...]) -> dict[str, float]:
    """Time of a trial at each batch size together, against stock: each size weighs its time."""
    stock = [row["batch_size"] / row["stock_tokens_per_second"] for row in rows]
    return {
        kernels: sum(time * row[kernels] for time, row in zip(stock, rows, strict=True))
        / sum(stock)
        for kernels in settings
    }


def show(rows: list[dict[str, float]], settings: tuple[str, ...], *, as_json: bool) -> None:
    total = totals(rows, settings)
    if as_json:
        found = {"rows": rows, "total": total, "environment": environment.collect("auto")}
        print(json.dumps(found, indent=2))
        return
    print("time a token against stock (1 = as fast)")
    print("batch size  stock tokens/s  " + "  ".join(settings))
    for row in rows:
        cells = "  ".join(f"{row[kernels]:{len(kernels)}.3f}" for kernels in settings)
        print(f"{row['batch_size']:10.0f} {row['stock_tokens_per_second']:15.1f}  {cells}")
    cells = "  ".join(f"{total[kernels]:{len(kernels)}.3f}" for kernels in settings)
    print(f"{'total':>10} {'':15}  {cells}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--kernels", default=",".join(SETTINGS))
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--traffic", default="alone")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
