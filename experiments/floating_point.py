"""The small facts behind the finding: order changes a sum, and a batch changes the order.

    python experiments/floating_point.py            # seconds on a CPU; a GPU adds its own rows

Five measurements, each with the figure of the source ("Defeating Nondeterminism in LLM Inference",
Thinking Machines Lab, 2025):

- one sum of eight numbers, added up in 10,000 random orders, and in every order;
- one matrix product, computed 1000 times;
- the first row of a product, computed alone and together with all other rows;
- the same within `detcheck.batch_invariant()`;
- one attention result, with its keys split into a fixed number of parts and into parts of a fixed
  size.

Prints a table and writes `table.md` and `results.json`, with the environment, to
`results/floating_point/`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import operator
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch

import detcheck
from detcheck import environment

RESULTS = Path(__file__).resolve().parents[1] / "results" / "floating_point"
POSITIVE = (1e-10, 1e-5, 1e-2, 1.0)
SUMMANDS = (*POSITIVE, *(-value for value in POSITIVE))
"""The source's eight numbers; their exact sum is 0."""
ORDERS = 10_000
REPEATS = 1000
DTYPES = (torch.bfloat16, torch.float32)
KEYS, HEAD_DIM = 1000, 64
SPLIT_SIZE = 256
CORES = 8
"""Cores of an imagined device that splits attention to use all of them."""


@dataclass(frozen=True)
class Fact:
    """One measured fact, a row of the table."""

    fact: str
    source: str
    """The source's figure; empty if it gives none."""
    device: str
    dtype: str
    value: float
    """A count or a difference, in `unit`."""
    unit: str


def main() -> None:
    options = arguments()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    facts = list(sums())
    for device in devices:
        for dtype in DTYPES:
            facts += products(device, dtype, options.repeated_size, options.size)
    facts += splits()
    write(facts, options.out)
    print((options.out / "table.md").read_text(encoding="utf-8"))


def sums() -> tuple[Fact, Fact]:
    """How many different sums the eight numbers have, from left to right.

    The source prints its code, which is the first measurement here, and its result, 102. The count
    found here is another one; the exact sum is 0, and correctly rounded there is only one result.
    """
    unit, rng, values, in_random_orders = "different sums", random.Random(42), list(SUMMANDS), set()
    for _ in range(ORDERS):
        rng.shuffle(values)
        in_random_orders.add(plain_sum(values))
    in_every_order = set(map(plain_sum, permutations(SUMMANDS)))
    return (
        Fact(
            f"sum of 8 numbers in {ORDERS:,} random orders",
            "102 different sums",
            "CPU",
            "float64",
            len(in_random_orders),
            unit,
        ),
        Fact(
            f"the same in all {math.factorial(len(SUMMANDS)):,} orders",
            "",
            "CPU",
            "float64",
            len(in_every_order),
            unit,
        ),
    )


def plain_sum(values: Sequence[float]) -> float:
    """The sum from left to right. Python's own `sum` corrects its rounding since 3.12."""
    return functools.reduce(operator.add, values)


def products(device: str, dtype: torch.dtype, repeated_size: int, size: int) -> list[Fact]:
    """The facts about matrix products on one device, in one number type."""
    name = str(dtype).removeprefix("torch.")
    place = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    on_gpu = "largest difference 1669.25 (bfloat16, on a GPU)"
    return [
        Fact(
            f"the same product of {repeated_size}² matrices, {REPEATS} times",
            "all bitwise equal (2048², bfloat16, on a GPU)",
            place,
            name,
            different_repeats(device, dtype, repeated_size),
            "different results",
        ),
        Fact(
            f"`mm(a[:1], b)` against `mm(a, b)[:1]`, {size}², stock",
            on_gpu,
            place,
            name,
            row_alone_against_all(device, dtype, size, invariant=False),
            "largest difference",
        ),
        Fact(
            f"`mm(a[:1], b)` against `mm(a, b)[:1]`, {size}², batch-invariant",
            "",
            place,
            name,
            row_alone_against_all(device, dtype, size, invariant=True),
            "largest difference",
        ),
    ]


def different_repeats(device: str, dtype: torch.dtype, size: int) -> int:
    """How many different results one product of random matrices gives."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=rng).to(device, dtype) for _ in range(2))
    found: list[torch.Tensor] = []
    for _ in range(REPEATS):
        product = a @ b
        if not any(torch.equal(product, earlier) for earlier in found):
            found.append(product)
    return len(found)


def row_alone_against_all(device: str, dtype: torch.dtype, size: int, *, invariant: bool) -> float:
    """Largest absolute difference of row 0 of a product, computed alone and with all rows."""
    a = torch.linspace(-1000, 1000, size * size).reshape(size, size).to(device, dtype)
    with detcheck.batch_invariant("matmul") if invariant else nullcontext(), torch.inference_mode():
        alone, together = torch.mm(a[:1], a), torch.mm(a, a)[:1]
    return float((alone.double() - together.double()).abs().max())


def splits() -> list[Fact]:
    """One request's attention at batch sizes 1, 2, 4 and 8, its keys split in two ways.

    With a fixed number of parts over all requests, a request in a smaller batch is cut into more
    parts, so that every core has work. Parts of a fixed size do not depend on the batch.
    """
    batch_sizes = (1, 2, 4, 8)
    lengths = {
        f"as many parts as fill {CORES} cores": [
            equal_parts(CORES // size) for size in batch_sizes
        ],
        f"parts of {SPLIT_SIZE} keys": [parts_of_size(SPLIT_SIZE) for _ in batch_sizes],
    }
    return [
        Fact(
            f"attention over {KEYS} keys at batch sizes {', '.join(map(str, batch_sizes))}: {name}",
            "256+256+256+232: invariant" if "keys" in name else "not invariant",
            "CPU",
            "float32",
            len({attention(parts).numpy().tobytes() for parts in each_batch}),
            "different results",
        )
        for name, each_batch in lengths.items()
    ]


def equal_parts(count: int) -> list[int]:
    """The lengths of `count` parts of the keys, as equal as possible."""
    return [len(part) for part in torch.arange(KEYS).tensor_split(count)]


def parts_of_size(size: int) -> list[int]:
    """The lengths of parts of `size` keys; the last one holds the rest."""
    return [len(part) for part in torch.split(torch.arange(KEYS), size)]


def attention(lengths: Sequence[int]) -> torch.Tensor:
    """One query's attention, computed part by part and merged in order; (head_dim,).

    The query, keys and values are always the same; `lengths` says how the keys are split.
    """
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(HEAD_DIM, generator=rng)
    keys, values = (torch.randn(KEYS, HEAD_DIM, generator=rng) for _ in range(2))
    largest, weight, output = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(HEAD_DIM)
    for some_keys, some_values in zip(
        torch.split(keys, list(lengths)), torch.split(values, list(lengths)), strict=True
    ):
        scores = some_keys @ query / HEAD_DIM**0.5
        maximum = torch.maximum(largest, scores.max())
        exponentials, shrink = (scores - maximum).exp(), (largest - maximum).exp()
        weight = weight * shrink + exponentials.sum()
        output = output * shrink + exponentials @ some_values
        largest = maximum
    return output / weight


def write(facts: Sequence[Fact], folder: Path) -> None:
    """Write the facts with the environment, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "facts": [asdict(fact) for fact in facts],
        "environment": environment.collect("auto"),
    }
    text = json.dumps(report, indent=1) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    (folder / "table.md").write_text(table(facts), encoding="utf-8")


def table(facts: Sequence[Fact]) -> str:
    """The facts as a Markdown table."""
    lines = ["| fact | the source | device | dtype | here |", "|---|---|---|---|---|"]
    for fact in facts:
        singular = fact.unit.removesuffix("s") if fact.value == 1 else fact.unit
        counted = "different" in fact.unit
        here = f"{fact.value} {singular}" if counted else f"{singular} {fact.value:,.7g}"
        cells = (fact.fact, fact.source or "–", fact.device, fact.dtype, here)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="of the product with one row alone")
    parser.add_argument("--repeated-size", type=int, default=256, help="of the repeated product")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
