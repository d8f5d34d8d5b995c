"""Every usual cure of nondeterminism beside every other: what varies after it, and its price.

    python experiments/mitigations.py              # embedded model; about 15 minutes on 2 cores
    python experiments/mitigations.py MODEL --batch-sizes 1,16 --completions 40

Each cure answers the same question under the same loads. Three figures tell what still varies: the
distinct answers, the share of completions whose log-probabilities have other bits than those of the
first one, and the largest change of a log-probability before the answers diverge. The price is the
rate of tokens relative to stock kernels under the same load, measured in turn with all other cures
in every round, and the memory of the weights with packed copies.

Writes `table.md`, `results.json` (with the environment) and `figure.svg` to `results/mitigations/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from cures import CURES, Cure

import detcheck
from detcheck import environment, models
from detcheck.completion import Completion, first_divergence
from detcheck.experiment import DEFAULT_PROMPT
from detcheck.grid import Condition, conditions
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.settings import KernelSettings
from detcheck.models import LoadedModel
from detcheck.report import figure_style as style
from detcheck.traffic import plan_trials

RESULTS = Path(__file__).resolve().parents[1] / "results" / "mitigations"


@dataclass
class Row:
    """What varied after a cure, and its price."""

    cure: str
    completions: int
    distinct: int
    other_bits: float
    """Share of completions whose tokens or log-probabilities are not those of the first."""
    largest_change: float
    """Largest change of a log-probability before the answers diverge, in nats."""
    weight_bytes: int
    """Of the weights and their packed copies."""
    tokens_per_second: dict[int, float] = field(default_factory=dict)
    """By batch size: the median over the rounds."""
    relative_rate: dict[int, float] = field(default_factory=dict)
    """By batch size: tokens a second relative to stock in the same round; the median."""


class Bench:
    """One cure with its engine loaded."""

    def __init__(self, cure: Cure, loaded: LoadedModel, options: argparse.Namespace):
        self.cure = cure
        target = detcheck.InProcess(model=options.model, dtype=cure.dtype, device=options.device)
        self.loaded = loaded
        completions = options.slow_completions if cure.slow else options.completions
        self.experiment = detcheck.Experiment(
            prompts=(options.prompt,),
            kernels=(cure.kernels,),
            batch_sizes=tuple(size for size in sizes_of(options.batch_sizes) if size < completions),
            completions=completions,
            max_new_tokens=options.max_new_tokens,
        )
        self.engine = cure.engine(loaded, self.experiment, target)
        self.bytes = sum(x.nbytes for x in (*loaded.model.parameters(), *loaded.model.buffers()))

    def answers(self) -> list[Completion]:
        """All completions of the experiment."""
        found: list[Completion] = []
        with self.cure.around():
            for condition in conditions(self.experiment, self.engine.target):
                for trial in plan_trials(self.experiment, condition):
                    found += (answer for _, answer in self.engine.run_trial(trial).completions)
        return found

    def rate(self, batch_size: int, tokens: int) -> float:
        """Tokens a second of one trial of `batch_size` requests of `tokens` tokens."""
        condition = Condition(0, self.cure.kernels, batch_size, completions=batch_size)
        trial = plan_trials(self.experiment, condition)[0]
        short = tuple(replace(request, max_new_tokens=tokens) for request in trial.requests)
        with self.cure.around():
            result = self.engine.run_trial(replace(trial, requests=short))
        return float(result.generated_tokens / result.elapsed_s)

    def row(self) -> Row:
        """What varied, without the price."""
        answers = self.answers()
        first = answers[0]
        bits = {(first.fingerprint, first.logprob_digest)}
        return Row(
            self.cure.name,
            len(answers),
            len({answer.fingerprint for answer in answers}),
            sum((x.fingerprint, x.logprob_digest) not in bits for x in answers) / len(answers),
            max(largest_change(first, answer) for answer in answers),
            self.bytes + self.packed_bytes(),
        )

    def packed_bytes(self) -> int:
        """Memory of the packed copies that this cure's products use."""
        if "matmul" not in KernelSettings.parse(self.cure.kernels).families:
            return 0
        own = {id(weight) for weight in self.loaded.model.parameters()}
        alone = (copy for key, copy in STORE.copies.items() if key in own)
        together = (copy for keys, copy in STORE.side_by_side.items() if own.issuperset(keys))
        return sum(copy.packed.nbytes for copy in (*alone, *together))


def largest_change(a: Completion, b: Completion) -> float:
    """Largest difference of the log-probabilities of the tokens that both chose first."""
    if a.top_two is None or b.top_two is None or a.token_ids is None or b.token_ids is None:
        raise ValueError("the engine gave no log-probabilities")
    shared = first_divergence(a.token_ids, b.token_ids)
    pairs = zip(a.top_two.logprobs[:shared], b.top_two.logprobs[:shared], strict=False)
    return max((abs(left - right) for left, right in pairs), default=0.0)


def measure(options: argparse.Namespace) -> list[Row]:
    """All cures: first their answers, then their rates, in turn."""
    rows, benches = [], []
    for cure in CURES:
        benches.append(Bench(cure, load(cure, options), options))
        rows.append(benches[-1].row())
        print(f"{cure.name}: {rows[-1].distinct} distinct", flush=True)
    for size in sizes_of(options.rate_sizes):
        rounds = [
            {bench.cure.name: bench.rate(size, options.rate_tokens) for bench in rotated}
            for rotated in rotations(benches, size, options)
        ]
        for row in rows:
            timed = [each for each in rounds if row.cure in each]
            if timed:
                row.tokens_per_second[size] = statistics.median(x[row.cure] for x in timed)
                row.relative_rate[size] = statistics.median(
                    x[row.cure] / x[CURES[0].name] for x in timed
                )
    return rows


def load(cure: Cure, options: argparse.Namespace) -> LoadedModel:
    """The model that a cure needs; cures that change nothing about it share one."""
    plain = _load(options.model, cure.dtype, options.device)
    if cure.prepare is None:
        return plain
    return cure.prepare(_load.__wrapped__(options.model, cure.dtype, options.device))


@cache
def _load(model: str | None, dtype: str, device: str) -> LoadedModel:
    return models.load(model, dtype=dtype, device=device)


def rotations(
    benches: list[Bench], size: int, options: argparse.Namespace
) -> Iterator[Iterable[Bench]]:
    """For each round, the cures that are timed under this load, another one first each time."""
    timed = [
        bench for bench in benches if not bench.cure.slow or size == sizes_of(options.rate_sizes)[0]
    ]
    for shift in range(options.rounds):
        yield timed[shift:] + timed[:shift]


def table(rows: list[Row], options: argparse.Namespace) -> str:
    """The rows as a Markdown table, with a paragraph that explains its columns."""
    sizes = sizes_of(options.rate_sizes)
    head = (
        *("cure", "distinct", "other bits", "largest change", "memory"),
        *(f"rate at {size}" for size in sizes),
    )
    lines = [
        f"“{options.prompt}”, {options.completions} completions "
        f"({options.slow_completions} if each needs a batch of its own) of "
        f"{options.max_new_tokens} tokens under batch sizes {options.batch_sizes}. "
        "*Other bits*: completions whose tokens or log-probabilities are not those of the first. "
        "*Largest change*: of a log-probability before the answers diverge, in nats. *Memory*: "
        "weights with packed copies, in MB. *Rate*: tokens a second relative to stock under the "
        "same load, higher is better.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    return "\n".join((*lines, *(line_of(row, sizes) for row in rows))) + "\n"


def line_of(row: Row, sizes: tuple[int, ...]) -> str:
    """One row of the Markdown table."""
    cells = (
        row.cure,
        f"{row.distinct} of {row.completions}",
        f"{row.other_bits:.0%}",
        f"{row.largest_change:.2g}",
        f"{row.weight_bytes / 1e6:.0f}",
        *(f"{row.relative_rate[size]:.2f}" if size in row.relative_rate else "–" for size in sizes),
    )
    return f"| {' | '.join(cells)} |"


def figure(rows: list[Row]) -> str:
    """A picture as SVG: the share of completions with other bits against the rate."""
    with style.style():
        drawing = style.new_figure(620, 360)
        axes = drawing.add_axes((0.11, 0.15, 0.52, 0.75))
        for number, row in enumerate(rows, 1):
            rate = statistics.geometric_mean(row.relative_rate.values())
            cured = row.other_bits == 0
            colour = style.INVARIANT_COLOUR if cured else style.STOCK_COLOUR
            axes.scatter(rate, 100 * row.other_bits, s=36, color=colour)
            axes.annotate(str(number), (rate, 100 * row.other_bits), (4, 4),
                          textcoords="offset points")  # fmt: skip
            text = f"{number}  {row.cure}: {row.distinct} distinct"
            drawing.text(0.65, 0.92 - 0.075 * number, text, size=9, color=colour)
        axes.set_xlabel("tokens a second relative to stock (mean over loads)")
        axes.set_ylabel("completions with other bits, in per cent")
        axes.set_xlim(0, 1.3)
        axes.set_ylim(-5, 105)
        alt = "Each cure: the share of completions with other bits against its relative rate."
        return style.finish(drawing, "mitigations", alt).standalone()


def write(rows: list[Row], options: argparse.Namespace) -> None:
    """Save the table, the figures behind it with the environment, and the picture."""
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "rows": [asdict(row) for row in rows],
        "environment": environment.collect("auto"),
    }
    (options.out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(table(rows, options), encoding="utf-8")
    (options.out / "figure.svg").write_text(figure(rows), encoding="utf-8")


def sizes_of(listed: str) -> tuple[int, ...]:
    """Batch sizes from text such as `1,4,16`."""
    return tuple(int(size) for size in listed.split(","))


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--rate-sizes", default="1,4,16,64")
    parser.add_argument("--completions", type=int, default=85)
    parser.add_argument("--slow-completions", type=int, default=13)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rate-tokens", type=int, default=24, help="tokens of a timed answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows = measure(options)
    write(rows, options)
    print(table(rows, options))


if __name__ == "__main__":
    main()
