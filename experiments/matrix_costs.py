"""The time that batch-invariant kernels take in a tiny model, for `model_matrix.py`.

Rounds are paired: in each, stock and batch-invariant kernels take turns on the same requests, and
their ratio is one sample. So a machine that slows down for a while slows both of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from matrix_relations import forward, generate, requests_of

from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

ROUNDS = 7
REPEATS = 2
"""Calls that are timed in a turn, after one that is not; the faster one counts."""


def costs(models: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, float]:
    """By dtype of `models`: time with batch-invariant kernels as a multiple of stock's.

    The requests, of `lengths` tokens, are computed in one forward pass and answered by `generate`.
    Returns the median of `ROUNDS` ratios, rounded to hundredths.
    """
    requests = requests_of(lengths)
    return {name: round(_ratio(model, requests), 2) for name, model in models.items()}


def _ratio(model: Any, requests: Sequence[Sequence[int]]) -> float:
    ratios = []
    for number in range(ROUNDS):
        turns = (STOCK, BATCH_INVARIANT) if number % 2 else (BATCH_INVARIANT, STOCK)
        elapsed = {kernels: _elapsed_s(model, requests, kernels) for kernels in turns}
        ratios.append(elapsed[BATCH_INVARIANT] / elapsed[STOCK])
    return median(ratios)


def _elapsed_s(model: Any, requests: Sequence[Sequence[int]], kernels: str) -> float:
    """Seconds of the fastest call; the mode is entered, and warmed up, before the clock starts."""
    fastest = float("inf")
    with kernels_in_force(kernels), torch.no_grad():
        for call in range(1 + REPEATS):
            start = perf_counter()
            forward(model, requests)
            generate(model, requests)
            if call:
                fastest = min(fastest, perf_counter() - start)
    return fastest
