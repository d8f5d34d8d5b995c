"""Measures of the mismatch between two log-probabilities of the same chosen tokens.

For every token that the sampler chose, r = log π_trainer − log π_sampler, in nats; w = exp(r) is
its importance ratio. A positive r means that the trainer finds the token more probable.

| measure | definition |
|---|---|
| `k1` | mean of −r: estimates KL(sampler ‖ trainer), and may be negative |
| `k2` | mean of r² / 2: never negative, biased |
| `k3` | mean of w − 1 − r: never negative, unbiased |
| `mean_abs`, `max_abs`, `p99_abs` | of the absolute value of r |
| `mult_prob_error` | mean of exp(abs(r)), 1 if there is no gap: NeMo RL's token_mult_prob_error |
| `bitwise_tokens` | share of tokens whose two log-probabilities are equal as float32 |
| `bitwise_sequences` | share of sequences in which all tokens are |
| `ratio_outside` | share of tokens with w below 0.5 or above 2 |
| `ess` | effective sample size as a share of the tokens: (Σw)² / (n Σw²) |
| `chi2_token` | mean of w² − 1 |
| `chi2_sequence` | the same with the product of w over a sequence |
| `pearson` | correlation of the two probabilities of each token |

Intervals are 95 % percentile intervals of a bootstrap that draws whole sequences, since tokens of
one sequence are not independent. The largest value of a sample has no useful upper bound there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Interval = tuple[float, float]

RESAMPLES = 1000
CONFIDENCE = 0.95
RATIO_BOUNDS = (0.5, 2.0)
P99 = 0.99
MOST_NATS = 600.0
"""Larger exponents are taken as this one, so that a sum of their powers is a number."""
_AT_ONCE = 50
"""Resamples whose 99th percentiles are computed together: bounds the memory."""


class MismatchMeasures(msgspec.Struct, frozen=True, kw_only=True):
    """The measures of one comparison; see the module. Shares are fractions of 1.

    A measure that is not defined, such as the correlation of a single token, is NaN.
    """

    tokens: int
    sequences: int
    k1: float
    k2: float
    k3: float
    mean_abs: float
    max_abs: float
    p99_abs: float
    mult_prob_error: float
    bitwise_tokens: float
    bitwise_sequences: float
    ratio_outside: float
    ess: float
    chi2_token: float
    chi2_sequence: float
    pearson: float
    intervals: dict[str, Interval]
    """Of each measure by name; empty for a single sequence."""


def measure(
    sampler: Sequence[Floats], trainer: Sequence[Floats], *, resamples: int = RESAMPLES
) -> MismatchMeasures:
    """The measures of the log-probabilities `sampler` and `trainer`, both (tokens,) a sequence.

    Sequences without a token are left out. With `resamples=0` there are no intervals. Raises
    ValueError if there is no token, or if the two sides have other lengths.
    """
    pairs = [pair for pair in zip(sampler, trainer, strict=True) if len(pair[0])]
    if not pairs or any(len(a) != len(b) for a, b in pairs):
        raise ValueError("Both sides need the same tokens, at least one.")
    # A correlation stays the same if a constant is taken off, and keeps its digits.
    shift = (_probabilities(pairs[0][0])[0], _probabilities(pairs[0][1])[0])
    sums = np.stack([_sums(*pair, shift) for pair in pairs])
    gaps = [np.abs(_ratio(*pair)) for pair in pairs]
    whole = _from_sums(sums.sum(0)[None], len(pairs))
    point = {name: float(value[0]) for name, value in whole.items()}
    every = np.concatenate(gaps)
    point["max_abs"] = float(every.max())
    point["p99_abs"] = float(np.quantile(every, P99, method="inverted_cdf"))
    intervals = _intervals(sums, gaps, resamples) if resamples and len(pairs) > 1 else {}
    return MismatchMeasures(tokens=len(every), sequences=len(pairs), intervals=intervals, **point)


def _ratio(sampler: Floats, trainer: Floats) -> Floats:
    """r of each token, float64."""
    return np.asarray(trainer, np.float64) - np.asarray(sampler, np.float64)


def _probabilities(logprobs: Floats) -> Floats:
    return np.exp(np.asarray(logprobs, np.float64))


def _exp(x: Any) -> Any:
    """exp, bounded so that sums over resamples stay finite."""
    return np.exp(np.minimum(x, MOST_NATS))


_TOKEN_SUMS = (
    "n", "k1", "k2", "k3", "mean_abs", "mult_prob_error", "bitwise_tokens", "ratio_outside",
    "w", "ww", "x", "y", "xx", "yy", "xy", "bitwise_sequences", "sequence_ww",
)  # fmt: skip


def _sums(sampler: Floats, trainer: Floats, shift: tuple[float, float]) -> Floats:
    """One sequence's sums over its tokens, in the order of `_TOKEN_SUMS`.

    `shift` is taken off the sampler's and the trainer's probabilities.
    """
    r = _ratio(sampler, trainer)
    # Half the bound for w, so that its square is held to the same one.
    w, ww, error = np.exp(np.minimum(r, MOST_NATS / 2)), _exp(2 * r), _exp(np.abs(r))
    above = np.expm1(np.minimum(r, MOST_NATS)) - r
    x, y = _probabilities(sampler) - shift[0], _probabilities(trainer) - shift[1]
    equal = np.asarray(sampler, np.float32) == np.asarray(trainer, np.float32)
    outside = (w < RATIO_BOUNDS[0]) | (w > RATIO_BOUNDS[1])
    # expm1 keeps the digits that w - 1 - r would lose for small r.
    columns = (
        np.ones_like(r), -r, r * r / 2, above, np.abs(r), error, equal, outside,
        w, ww, x, y, x * x, y * y, x * y,
    )  # fmt: skip
    return np.array(
        [*(column.sum() for column in columns), equal.all(), _exp(2 * r.sum())], np.float64
    )


def _from_sums(sums: Floats, num_sequences: int) -> dict[str, Floats]:
    """Measures (resamples,) from sums (resamples, sums) of `num_sequences` sequences each."""
    at = {name: sums[:, index] for index, name in enumerate(_TOKEN_SUMS)}
    n = at["n"]
    found: dict[str, Floats] = {
        name: at[name] / n
        for name in (
            "k1", "k2", "k3", "mean_abs", "mult_prob_error", "bitwise_tokens", "ratio_outside",
        )
    }  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found["ess"] = at["w"] ** 2 / (n * at["ww"])
        found["chi2_token"] = at["ww"] / n - 1
        found["chi2_sequence"] = at["sequence_ww"] / num_sequences - 1
        covariance = at["xy"] - at["x"] * at["y"] / n
        spread = (at["xx"] - at["x"] ** 2 / n) * (at["yy"] - at["y"] ** 2 / n)
        found["pearson"] = np.clip(covariance / np.sqrt(spread), -1, 1)
    found["bitwise_sequences"] = at["bitwise_sequences"] / num_sequences
    return found


def _intervals(sums: Floats, gaps: Sequence[Floats], resamples: int) -> dict[str, Interval]:
    """The interval of every measure, over `resamples` draws of whole sequences."""
    size = len(sums)
    generator = np.random.default_rng(0)
    counts = generator.multinomial(size, np.full(size, 1 / size), size=resamples)
    with np.errstate(invalid="ignore"):
        found = _from_sums(counts @ sums, size)
    largest = np.array([gap.max() for gap in gaps])
    found["max_abs"] = np.where(counts > 0, largest, -np.inf).max(1)
    found["p99_abs"] = _p99(counts, gaps)
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    return {name: _interval(values, tails) for name, values in found.items()}


def _interval(values: Floats, tails: tuple[float, float]) -> Interval:
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(values, tails)
    return float(low), float(high)


def _p99(counts: NDArray[np.integer], gaps: Sequence[Floats]) -> Floats:
    """The 99th percentile of the gaps in each resample, given how often it has each sequence."""
    every = np.concatenate(gaps)
    order = np.argsort(every)
    sequence = np.repeat(np.arange(len(gaps)), [len(gap) for gap in gaps])[order]
    found = []
    for start in range(0, len(counts), _AT_ONCE):
        mass = counts[start : start + _AT_ONCE, sequence].cumsum(1)
        first = (mass < P99 * mass[:, -1:]).sum(1)
        found.append(every[order][np.minimum(first, len(every) - 1)])
    return np.concatenate(found)
