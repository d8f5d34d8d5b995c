"""Which family of kernels makes which difference, and what each costs: every subset in one run.

    python experiments/ablation.py                                   # about 35 minutes on 2 cores
    python experiments/ablation.py --dtypes bfloat16 --engines continuous

For each engine and dtype, one experiment asks the same question under stock kernels, each family
alone, the rest of them together, and all, in turn at every load. Writes `results/ablation/`
(table.md, results.json with the environment); the runs stay under `results/runs/ablation/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import detcheck
from detcheck import environment
from detcheck.analysis.results import Group

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "ablation"
RUNS = ROOT / "results" / "runs" / "ablation"
LIGHTHOUSE = "Write a short story about a lighthouse keeper."
REST = "batch-invariant:norm+softmax+reduce+pointwise"
KERNELS = (
    *("stock", "batch-invariant:matmul", "batch-invariant:attention"),
    *(REST, "batch-invariant", "fully-invariant"),
)


def main() -> None:
    options = arguments()
    rows: list[dict[str, Any]] = []
    for engine, dtype in product(options.engines.split(","), options.dtypes.split(",")):
        rows += measure(options, engine, dtype)
        write(rows, options)
    print(table(rows, options))


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Keep what has been measured so far."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = {
        "prompt": options.prompt,
        "completions": options.completions,
        "max_new_tokens": options.max_new_tokens,
        "rows": rows,
        "environment": environment.collect("auto"),
    }
    (RESULTS / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "table.md").write_text(table(rows, options), encoding="utf-8")


def measure(options: argparse.Namespace, engine: str, dtype: str) -> list[dict[str, Any]]:
    """One experiment: a row a kernels setting."""
    folder = RUNS / f"{engine}-{dtype}"
    shutil.rmtree(folder, ignore_errors=True)
    experiment = detcheck.Experiment(
        model=options.model,
        prompts=(options.prompt,),
        kernels=KERNELS,
        batch_sizes=tuple(int(size) for size in options.batch_sizes.split(",")),
        completions=options.completions,
        max_new_tokens=options.max_new_tokens,
        engine=engine,
        traffic="mixed",
        dtype=dtype,
        device=options.device,
    )
    groups = detcheck.analyse(detcheck.run(experiment, out=folder)).groups
    return [row_of(engine, dtype, group) for group in groups]


def row_of(engine: str, dtype: str, group: Group) -> dict[str, Any]:
    return {
        "engine": engine,
        "dtype": dtype,
        "kernels": group.kernels,
        "completions": group.completions,
        "distinct": group.distinct,
        "first_divergence": group.first_divergence,
        "logprobs_differ": group.logprobs_differ,
        "batches": group.evidence.sentence,
        "relative_cost": group.relative_cost,
        "relative_cost_by_batch_size": {
            row.batch_size: row.relative_cost for row in group.by_batch_size
        },
    }


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    sizes = options.batch_sizes.split(",")
    heads = ("engine", "dtype", "kernels", "distinct", "parts at", "other bits", "cost")
    lines = [
        f"“{options.prompt}”, {options.completions} completions of {options.max_new_tokens} tokens "
        f"under each, loads of {', '.join(sizes)}, half of each load other requests. *Other bits*: "
        "completions with the reference's answer and other log-probabilities. *Cost*: time a token "
        "against stock under the same loads; in brackets by load.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    return "\n".join((*lines, *map(line_of, rows))) + "\n"


def line_of(row: dict[str, Any]) -> str:
    by_size = row["relative_cost_by_batch_size"].values()
    cost = "–"
    if row["relative_cost"] is not None:
        each = ", ".join("–" if value is None else f"{value:.2f}" for value in by_size)
        cost = f"{row['relative_cost']:.2f} ({each})"
    parts, bits = (
        "–" if row[name] is None else row[name] for name in ("first_divergence", "logprobs_differ")
    )
    cells = (row["engine"], row["dtype"], row["kernels"].replace(REST, "…:the other four"))
    return f"| {' | '.join(cells)} | {row['distinct']} | {parts} | {bits} | {cost} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--prompt", default=LIGHTHOUSE)
    parser.add_argument("--engines", default="continuous,static")
    parser.add_argument("--dtypes", default="bfloat16,float16,float32")
    parser.add_argument("--batch-sizes", default="1,4,8,16")
    parser.add_argument("--completions", type=int, default=29)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
