"""Which families of kernels have to be batch-invariant, and the cost of each.

    python experiments/ablation.py                                   # about 35 minutes on 2 cores
    python experiments/ablation.py --dtypes bfloat16 --engines continuous

For each engine and dtype, one experiment asks the same question at every batch size with: stock
kernels, batch-invariant matmul alone, batch-invariant attention alone, the other four families,
all families, and fully-invariant kernels. Writes `table.md` and `results.json` (with the
environment) to `results/ablation/`; the runs stay under `results/runs/ablation/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import detcheck
from detcheck import environment, targets
from detcheck.analysis.results import Group

RESULTS = Path(__file__).resolve().parents[1] / "results"
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
    """Save the rows that have been measured so far, so that a later failure does not lose them."""
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "prompt": options.prompt,
        "completions": options.completions,
        "max_new_tokens": options.max_new_tokens,
        "rows": rows,
        "environment": environment.collect("auto"),
    }
    (options.out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(table(rows, options), encoding="utf-8")


def measure(options: argparse.Namespace, engine: str, dtype: str) -> list[dict[str, Any]]:
    """Run one experiment; returns one row for each kernels setting."""
    folder = options.runs / f"{engine}-{dtype}"
    shutil.rmtree(folder, ignore_errors=True)
    target = targets.from_dict(
        {"engine": engine, "model": options.model, "dtype": dtype, "device": options.device}
    )
    experiment = detcheck.Experiment(
        prompts=(options.prompt,),
        kernels=KERNELS,
        batch_sizes=tuple(int(size) for size in options.batch_sizes.split(",")),
        completions=options.completions,
        max_new_tokens=options.max_new_tokens,
        traffic="mixed",
    )
    groups = detcheck.analyse(detcheck.run(experiment, target, folder)).groups
    return [row_of(engine, dtype, group) for group in groups]


def row_of(engine: str, dtype: str, group: Group) -> dict[str, Any]:
    """The row of one kernels setting; costs are times a token relative to stock."""
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
    """The rows as a Markdown table, with a paragraph that explains its columns."""
    sizes = options.batch_sizes.split(",")
    heads = (
        "engine",
        "dtype",
        "kernels",
        "distinct",
        "first divergence",
        "log-probabilities",
        "cost",
    )
    lines = [
        f"“{options.prompt}”, {options.completions} completions of {options.max_new_tokens} tokens "
        f"with each setting, batch sizes {', '.join(sizes)}; half of each batch is other requests. "
        "*Log-probabilities*: completions with the reference's tokens but different "
        "log-probabilities. *Cost*: time a token relative to stock under the same load; in "
        "brackets for each batch size.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    return "\n".join((*lines, *map(line_of, rows))) + "\n"


def line_of(row: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    by_size = row["relative_cost_by_batch_size"].values()
    cost = "–"
    if row["relative_cost"] is not None:
        each = ", ".join("–" if value is None else f"{value:.2f}" for value in by_size)
        cost = f"{row['relative_cost']:.2f} ({each})"
    divergence, logprobs = (
        "–" if row[name] is None else row[name] for name in ("first_divergence", "logprobs_differ")
    )
    cells = (row["engine"], row["dtype"], row["kernels"].replace(REST, "…:the other four"))
    return f"| {' | '.join(cells)} | {row['distinct']} | {divergence} | {logprobs} | {cost} |"


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--prompt", default=LIGHTHOUSE)
    parser.add_argument("--engines", default="continuous,static")
    parser.add_argument("--dtypes", default="bfloat16,float16,float32")
    parser.add_argument("--batch-sizes", default="1,4,8,16")
    parser.add_argument("--completions", type=int, default=29)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation")
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs" / "ablation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
