"""How long does a run of a million completions take to load and analyse, and how much memory?

Builds a run directory with ten thousand variants through the real format. A child process loads
and analyses it, and makes the pandas tables. The aim is under 10 s and under 1 GB for all of it;
the exit code is 0 if it was met, else 1.

    python experiments/bench_analysis.py                 about a minute, most of it building
    python experiments/bench_analysis.py --completions 100000 --variants 1000 --json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detcheck.analysis import analyse
from detcheck.completion import Completion, TopTwo
from detcheck.evidence import ObservedBatch
from detcheck.experiment import Experiment
from detcheck.grid import conditions
from detcheck.rundir import RunWriter, load
from detcheck.targets import Scripted

MAX_SECONDS = 10.0
MAX_BYTES = 1e9
VOCABULARY = 49_152


@dataclass(frozen=True, slots=True)
class Hashed(Completion):
    """A completion whose hashes are computed once, since each is written a hundred times."""

    known_fingerprint: str = ""
    known_digest: str = ""

    @property
    def fingerprint(self) -> str:
        """See `Completion`."""
        return self.known_fingerprint

    @property
    def logprob_digest(self) -> str | None:
        """See `Completion`."""
        return self.known_digest


def make_variants(num_variants: int, num_tokens: int, rng: np.random.Generator) -> list[Hashed]:
    """Answers that diverge from one another at random tokens; the first is the reference."""
    tokens = rng.integers(0, VOCABULARY, (num_variants, num_tokens))
    for row in range(1, num_variants):
        stop = rng.integers(1, num_tokens)
        tokens[row, :stop] = tokens[rng.integers(0, row), :stop]
    return [_completion(row.tolist(), rng) for row in tokens]


def _completion(token_ids: list[int], rng: np.random.Generator) -> Hashed:
    pieces = [f"w{token_id} " for token_id in token_ids]
    top_two = TopTwo(
        runner_up_token_ids=tuple((token_id + 1) % VOCABULARY for token_id in token_ids),
        gaps=tuple(rng.exponential(2.0, len(token_ids)).tolist()),
        logprobs=tuple((-rng.exponential(0.5, len(token_ids))).tolist()),
    )
    parts = {
        "text": "".join(pieces),
        "finish_reason": "length",
        "token_ids": tuple(token_ids),
        "token_ends": tuple(np.cumsum([len(piece) for piece in pieces]).tolist()),
        "top_two": top_two,
        "observed_batch": ObservedBatch(1000, 1000, 1000.0, 1000, len(token_ids)),
    }
    plain = Completion(**parts)  # type: ignore[arg-type]
    return Hashed(
        **parts,  # type: ignore[arg-type]
        known_fingerprint=plain.fingerprint,
        known_digest=plain.logprob_digest or "",
    )


def build(path: Path, completions: int, num_variants: int, num_tokens: int) -> None:
    """Write the run: two kernels settings, batches of 100 and 1000, common and rare variants."""
    rng = np.random.default_rng(0)
    variants = make_variants(num_variants, num_tokens, rng)
    target = Scripted()
    experiment = target.settle(Experiment(completions=completions // 2, batch_sizes=(100, 1000)))
    # Every variant once, then a heavy-tailed draw: some variants are common, most are rare.
    draws = rng.zipf(1.3, completions) % num_variants
    draws[rng.permutation(completions)[:num_variants]] = np.arange(num_variants)
    answers = iter(draws.tolist())
    writer = RunWriter.create(
        path, experiment, target, {}, run_id="bench", version="0", created="now"
    )
    for index, condition in enumerate(conditions(experiment, target)):
        for trial, size in enumerate(_sizes(condition.completions, condition.batch_size)):
            rows = [(request, variants[next(answers)]) for request in range(size)]
            writer.append_trial(
                index, trial, rows, elapsed_s=1.0, generated_tokens=size * num_tokens
            )
        writer.set_status(index, "done")
    writer.finish([], "now")
    writer.close()


def _sizes(completions: int, batch_size: int) -> Iterator[int]:
    while completions > 0:
        yield min(batch_size, completions)
        completions -= batch_size


def measure(path: Path) -> dict[str, float]:
    """Load, analyse and tabulate in this fresh process; returns seconds and bytes."""
    begin = time.perf_counter()
    run = load(path)
    loaded = time.perf_counter()
    analysis = analyse(run)
    analysed = time.perf_counter()
    tables = [run.completions_frame(), run.variants_frame(), analysis.frame()]
    tables += [analysis.variants_frame(), analysis.branchings_frame()]
    tabulated = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "completions": len(run.completions),
        "variants": len(run.variants),
        "distinct": max(group.distinct for group in analysis.groups),
        "load_s": loaded - begin,
        "branchings": sum(len(group.branchings) for group in analysis.groups),
        "table_rows": sum(map(len, tables)),
        "analyse_s": analysed - loaded,
        "tables_s": tabulated - analysed,
        "cpu_s": time.process_time(),
        "peak_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }


def measure_in_child(path: Path) -> dict[str, float]:
    """Call `measure` in a process that has not built the run; `total_s` includes its start."""
    command = [sys.executable, __file__, "--measure", str(path)]
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout), "total_s": time.perf_counter() - begin}


def show(figures: dict[str, float]) -> None:
    """Print the measurements as a table."""
    for name, value in figures.items():
        shown = f"{value / 1e6:,.0f} MB" if name.endswith("_bytes") else f"{value:,.2f}"
        print(f"{name:14} {shown.removesuffix('.00'):>12}")


def main() -> int:
    """Build, measure, print; returns 0 if the aim was met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--variants", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        build(path, options.completions, options.variants, options.tokens)
        size = sum(file.stat().st_size for file in path.iterdir())
        figures = {**measure_in_child(path), "run_bytes": size}
    print(json.dumps(figures)) if options.json else show(figures)
    return int(figures["total_s"] >= MAX_SECONDS or figures["peak_bytes"] >= MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
