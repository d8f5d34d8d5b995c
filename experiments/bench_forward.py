"""Prefill and decoding in static batches: kernels against stock, or model against model.

    python experiments/bench_forward.py FOLDER [--kernels batch-invariant] [--batch-sizes 1,4,16]
        [--tokens 100] [--steps 5] [--rounds 5]
    python experiments/bench_forward.py FOLDER --against OTHER   # the same kernels, two models

The two sides take turns, and which is first changes from round to round. A ratio is of the same
round: median, and in brackets the smallest and largest. For models see `random_model.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from detcheck import models
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.mode import keep_packed_weights
from detcheck.kernels.settings import STOCK

Times = tuple[float, float]
"""Seconds of the prefill, and of one decoding step."""


def main() -> None:
    options = arguments()
    keep_packed_weights()
    folders = [options.model, options.against or options.model]
    own, other = (models.load(each, dtype=options.dtype, device="cpu").model for each in folders)
    for kernels in options.kernels.split(","):
        reference = kernels if options.against else STOCK
        for size in (int(each) for each in options.batch_sizes.split(",")):
            ids = torch.randint(5, 1000, (size, options.tokens))
            sides = (
                partial(times_of, own, ids, kernels, options.steps),
                partial(times_of, other, ids, reference, options.steps),
            )
            print(f"{kernels}, batch {size}: {compared(sides, options.rounds)}", flush=True)


@torch.no_grad()
def times_of(model: Any, ids: torch.Tensor, kernels: str, steps: int) -> Times:
    """One prefill of `ids` (batch, tokens) and the median of `steps` decoding steps."""
    with kernels_in_force(kernels):
        started = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - started
        name = "past_key_values" if getattr(out, "past_key_values", None) else "cache_params"
        cache, seconds = {name: out[name]}, []
        for _ in range(steps):
            started = time.perf_counter()
            model(input_ids=ids[:, :1], use_cache=True, **cache)
            seconds.append(time.perf_counter() - started)
    return prefill, statistics.median(seconds)


def compared(sides: tuple[Callable[[], Times], Callable[[], Times]], rounds: int) -> str:
    """The first side's times against the second's, after one round that warms up."""
    pairs: list[list[Times]] = [[side() for side in sides]]
    for number in range(rounds):
        found = {first: sides[first]() for first in ((0, 1) if number % 2 else (1, 0))}
        pairs.append([found[0], found[1]])
    texts = []
    for index, name in enumerate(("prefill", "decoding step")):
        ratios = sorted(own[index] / other[index] for own, other in pairs[1:])
        reference = statistics.median(other[index] for _, other in pairs[1:])
        spread = f"[{ratios[0]:.2f}–{ratios[-1]:.2f}] of {reference * 1000:.1f} ms"
        texts.append(f"{name} {statistics.median(ratios):.2f} {spread}")
    return "; ".join(texts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="hub id or folder")
    parser.add_argument("--against", help="another model, with the same kernels")
    parser.add_argument("--kernels", default="batch-invariant")
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=100, help="of the prompt")
    parser.add_argument("--steps", type=int, default=5, help="decoding steps")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
