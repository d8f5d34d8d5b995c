"""By how many points does the load alone move the score of an evaluation, and does it vanish?

    python experiments/evaluation_noise.py              # about 15 minutes on 2 cores
    python experiments/evaluation_noise.py --items 20 --loads 1,4 --orders 1

Makes 200 short items by a seed, half arithmetic and half multiple choice, and asks the embedded
model each at temperature 0: alone, and among 4, 16 and 64 requests in flight, which are other items
of the set. Each load above 1 is repeated with the items in other orders, so each load and order is
one run of the evaluation, with one score. This is done with stock kernels in bfloat16 and in
float32, and with batch-invariant kernels in bfloat16. Writes `table.md`, `results.json` (with the
environment), `scores.svg` and the items to `results/evaluation_noise/`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detcheck import Experiment, environment, targets
from detcheck.analysis.answers import AnswerStability, Response, answered_item, stability_of
from detcheck.analysis.top1 import top1_std
from detcheck.completion import Completion, first_divergence
from detcheck.engines import Engine, open_engine
from detcheck.grid import Condition
from detcheck.parsers import answer_parser
from detcheck.report import figure_style as look
from detcheck.traffic import PlannedRequest, Trial

RESULTS = Path(__file__).resolve().parents[1] / "results" / "evaluation_noise"
SETTINGS = (("stock", "bfloat16"), ("stock", "float32"), ("batch-invariant", "bfloat16"))
COLOURS = (look.STOCK_COLOUR, look.OTHER_COLOUR, look.INVARIANT_COLOUR)
SHOTS = {
    "number": "Q: What is 12 + 5?\nA: 17\nQ: What is 9 - 4?\nA: 5\n",
    "letter": "Which is the largest number?\nA. 3\nB. 8\nC. 5\nAnswer: B\n\n",
}
KINDS = {
    "an animal": ("horse", "rabbit", "eagle", "shark", "goat", "tiger"),
    "a colour": ("green", "purple", "yellow", "orange", "blue", "black"),
    "a fruit": ("banana", "cherry", "peach", "grape", "melon", "plum"),
    "a tool": ("hammer", "saw", "drill", "spanner", "pliers", "chisel"),
    "a country": ("Norway", "Brazil", "Kenya", "Japan", "Poland", "Chile"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the evaluation."""

    id: str
    prompt: str
    answer: str
    parser: str


def main() -> None:
    options = arguments()
    items = make_items(options.items, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": i.id, "prompt": i.prompt, "answer": i.answer}) for i in items]
    (options.out / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for kernels, dtype in SETTINGS:
        rows.append(measure(items, kernels, dtype, options))
        write(rows, options)
    print(table(rows, len(items)))


def make_items(number: int, seed: int) -> list[Item]:
    """`number` different items: arithmetic and multiple choice in turn."""
    rng = random.Random(seed)
    found: dict[str, Item] = {}
    while len(found) < number:
        kind = ("number", "letter")[len(found) % 2]
        question, answer = arithmetic(rng) if kind == "number" else choice(rng)
        prompt = SHOTS[kind] + question
        found.setdefault(prompt, Item(f"{kind}-{len(found) + 1}", prompt, answer, kind))
    return list(found.values())


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """A sum, a difference or a product, and its value."""
    sign = rng.choice("+-*")
    limit = 9 if sign == "*" else 19
    a, b = sorted((rng.randint(2, limit), rng.randint(2, limit)), reverse=True)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"Q: What is {a} {sign} {b}?\nA:", str(value)


def choice(rng: random.Random) -> tuple[str, str]:
    """Which of three words is of a kind, and the letter of the right one."""
    kind, *others = rng.sample(sorted(KINDS), 3)
    words = [rng.choice(KINDS[name]) for name in (kind, *others)]
    right = words[0]
    rng.shuffle(words)
    lines = [f"{letter}. {word}" for letter, word in zip("ABC", words, strict=True)]
    question = "\n".join((f"Which is {kind}?", *lines, "Answer:"))
    return question, "ABC"[words.index(right)]


def measure(
    items: Sequence[Item], kernels: str, dtype: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Evaluate under every load and order; returns the row of one setting."""
    loads = [int(load) for load in options.loads.split(",")]
    experiment = Experiment(
        prompts=tuple(item.prompt for item in items),
        kernels=(kernels,),
        batch_sizes=tuple(loads),
        completions=max(loads),
        max_new_tokens=options.max_new_tokens,
    )
    target = targets.from_dict(
        {
            "model": options.model,
            "dtype": dtype,
            "device": options.device,
            "chat_template": False,
        }
    )
    engine = open_engine(experiment, target)
    runs: dict[tuple[int, int], list[Completion]] = {}
    try:
        for load in loads:
            for order in range(options.orders if load > 1 else 1):
                runs[load, order] = evaluate(engine, experiment, items, load, order)
                print(f"{kernels} {dtype}: load {load}, order {order}", flush=True)
    finally:
        engine.close()
    return row_of(kernels, dtype, items, runs)


def evaluate(
    engine: Engine, experiment: Experiment, items: Sequence[Item], load: int, order: int
) -> list[Completion]:
    """One run of the evaluation, `load` items in flight together; completions by item."""
    places = list(range(len(items)))
    random.Random(f"order {order}").shuffle(places)
    kernels = experiment.kernels[0]
    answers: dict[int, Completion] = {}
    for start in range(0, len(places), load):
        batch = places[start : start + load]
        condition = Condition(0, kernels, load, len(batch))
        requests = tuple(
            PlannedRequest(items[place].prompt, True, 0, experiment.max_new_tokens)
            for place in batch
        )
        result = engine.run_trial(Trial(condition, start, requests))
        for position, completion in result.completions:
            answers[batch[position]] = completion
    return [answers[place] for place in range(len(items))]


def row_of(
    kernels: str,
    dtype: str,
    items: Sequence[Item],
    runs: dict[tuple[int, int], list[Completion]],
) -> dict[str, Any]:
    """The figures of one setting. Scores are points of 100; shares are of 1."""
    stability = stability_of(kernels, list(answered(items, runs)))
    by_load: dict[int, list[float]] = defaultdict(list)
    for (load, _), completions in runs.items():
        right = [parse(i, c) == i.answer for i, c in zip(items, completions, strict=True)]
        by_load[load].append(100 * sum(right) / len(items))
    scores = [score for of_load in by_load.values() for score in of_load]
    mean = sum(scores) / len(scores)
    return {
        "kernels": kernels,
        "dtype": dtype,
        "scores_by_load": by_load,
        "best": max(scores),
        "worst": min(scores),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "standard_error": math.sqrt(mean * (100 - mean) / len(items)),
        **statistics(stability),
    }


def statistics(stability: AnswerStability) -> dict[str, Any]:
    """The figures that need no score."""
    return {
        "raw_agreement": stability.raw_agreement,
        "parsed_agreement": stability.parsed_agreement,
        "flips": len(stability.flipped),
        "flip_interval": stability.flip_interval,
        "div_index": stability.div_index,
        "top1_std": stability.top1_std,
        "unparsed": stability.unparsed,
        "completions": stability.completions,
        "flipped": [
            {
                "id": item.id,
                "expected": item.expected,
                "answers": [[count.answer, list(count.batch_sizes)] for count in item.answers],
            }
            for item in stability.flipped
        ],
    }


def answered(items: Sequence[Item], runs: dict[tuple[int, int], list[Completion]]) -> Iterator[Any]:
    """Each item with its completions over all loads and orders."""
    for place, item in enumerate(items):
        completions = {key: of_run[place] for key, of_run in runs.items()}
        responses = [
            Response(load, completion.text, parse(item, completion), completion.fingerprint)
            for (load, _), completion in completions.items()
        ]
        tokens = [completion.token_ids or () for completion in completions.values()]
        partings = [first_divergence(tokens[0], other) for other in tokens[1:]]
        logprobs = [
            (c.token_ids or (), np.exp(np.array(c.top_two.logprobs)))
            for c in completions.values()
            if c.top_two is not None
        ]
        yield answered_item(
            (place, item.prompt, item.id),
            responses,
            item.answer,
            div_index=min((index for index in partings if index is not None), default=None),
            top1_std=top1_std(logprobs),
        )


def parse(item: Item, completion: Completion) -> str | None:
    """The answer on the first line of a completion."""
    return answer_parser(item.parser)(completion.text.strip().partition("\n")[0])


def write(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Save the rows that have been measured so far, so that a later failure does not lose them."""
    report = {
        "items": options.items,
        "seed": options.seed,
        "orders": options.orders,
        "max_new_tokens": options.max_new_tokens,
        "rows": rows,
        "environment": environment.collect("auto"),
    }
    (options.out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(table(rows, options.items), encoding="utf-8")
    (options.out / "scores.svg").write_text(scores(rows).standalone(), encoding="utf-8")


def table(rows: Sequence[dict[str, Any]], items: int) -> str:
    """The rows as a Markdown table, with a paragraph that explains its columns."""
    heads = (
        *("kernels", "dtype", "worst to best score", "the load moves it by", "Std@Acc"),
        *("standard error", "answer flips", "TARr@N", "TARa@N", "Div_Index", "Avg_Std@top1_prob"),
    )
    lines = [
        f"{items} items, one score for each load and order, in points of 100. *The load moves it "
        "by*: half of the spread. *Standard error*: binomial, of the set alone. *Answer flips*: "
        "items whose parsed answer changed, with the exact 95 % interval of their share.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(cells(row, items))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any], items: int) -> tuple[str, ...]:
    """One row of the Markdown table."""
    low, high = row["flip_interval"]
    return (
        row["kernels"],
        row["dtype"],
        f"{row['worst']:.1f} to {row['best']:.1f}",
        f"±{(row['best'] - row['worst']) / 2:.2f}",
        "–" if row["std"] is None else f"{row['std']:.2f}",
        f"{row['standard_error']:.2f}",
        f"{row['flips']} of {items} ({100 * low:.1f} to {100 * high:.1f} %)",
        f"{100 * row['raw_agreement']:.1f} %",
        f"{100 * row['parsed_agreement']:.1f} %",
        "–" if row["div_index"] is None else f"{row['div_index']:.1f}",
        "–" if row["top1_std"] is None else f"{row['top1_std']:.2g}",
    )


def scores(rows: Sequence[dict[str, Any]]) -> look.Drawing:
    """One dot for each run of the evaluation: its score, by load and setting."""
    loads = list(rows[0]["scores_by_load"])
    with look.style():
        figure = look.new_figure()
        axes = look.new_axes(figure, "One evaluation, one model: only the load changes", top=74)
        for number, (row, colour) in enumerate(zip(rows, COLOURS, strict=False)):
            shift = 0.22 * (number - (len(rows) - 1) / 2)
            points = [
                (place + shift, score)
                for place, load in enumerate(loads)
                for score in row["scores_by_load"][load]
            ]
            x, y = zip(*points, strict=True)
            label = f"{row['kernels']}, {row['dtype']}"
            axes.plot(x, y, "o", color=colour, markersize=6, alpha=0.75, label=label)
        axes.set_xticks(range(len(loads)), [str(load) for load in loads])
        axes.set_xlabel("requests in flight together")
        axes.set_ylabel("score, points")
        look.legend(axes, columns=2)
        words = "; ".join(
            f"{row['kernels']} {row['dtype']}: {row['worst']:.1f} to {row['best']:.1f} points"
            for row in rows
        )
        return look.finish(figure, "scores", f"Score of each run by load. {words}")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loads", default="1,4,16,64")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
