"""The measures against their definitions written out, and the intervals against known spreads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detcheck.analysis.mismatch.measures import measure


def some(seed: int, spread: float, sequences: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    sampler = [
        -generator.exponential(1, size=int(length)).astype(np.float32)
        for length in generator.integers(5, 40, size=sequences)
    ]
    trainer = [
        (each + generator.normal(0, spread, len(each))).astype(np.float32) for each in sampler
    ]
    return sampler, trainer


def test_measures_are_those_of_the_definitions() -> None:
    sampler, trainer = some(0, 0.3)
    found = measure(sampler, trainer)
    pairs = [(float(a), float(b)) for x, y in zip(sampler, trainer, strict=True)
             for a, b in zip(x, y, strict=True)]  # fmt: skip
    r = [b - a for a, b in pairs]
    w = [math.exp(each) for each in r]
    n = len(r)
    assert (found.tokens, found.sequences) == (n, 6)
    assert found.k1 == pytest.approx(-sum(r) / n)
    assert found.k2 == pytest.approx(sum(x * x for x in r) / n / 2)
    assert found.k3 == pytest.approx(sum(math.exp(x) - 1 - x for x in r) / n)
    assert found.mean_abs == pytest.approx(sum(map(abs, r)) / n)
    assert found.max_abs == pytest.approx(max(map(abs, r)))
    assert found.p99_abs == sorted(map(abs, r))[math.ceil(0.99 * n) - 1]
    assert found.mult_prob_error == pytest.approx(sum(math.exp(abs(x)) for x in r) / n)
    assert found.ratio_outside == pytest.approx(sum(not 0.5 <= x <= 2 for x in w) / n)
    assert found.ess == pytest.approx(sum(w) ** 2 / (n * sum(x * x for x in w)))
    assert found.chi2_token == pytest.approx(sum(x * x for x in w) / n - 1)
    sums = [float((y.astype(float) - x).sum()) for x, y in zip(sampler, trainer, strict=True)]
    assert found.chi2_sequence == pytest.approx(sum(math.exp(2 * x) for x in sums) / 6 - 1)
    probabilities = np.exp(np.array(pairs).T)
    assert found.pearson == pytest.approx(np.corrcoef(probabilities)[0, 1])
    assert (found.bitwise_tokens, found.bitwise_sequences) == (0, 0)


def test_a_more_probable_token_of_the_trainer_is_a_positive_r_and_a_negative_k1() -> None:
    assert measure([np.array([-2.0])], [np.array([-1.0])]).k1 == -1


def test_equal_sides_have_no_gap() -> None:
    sampler, _ = some(1, 0.1)
    found = measure(sampler, [each.copy() for each in sampler])
    assert (found.k1, found.k2, found.k3, found.max_abs, found.p99_abs) == (0, 0, 0, 0, 0)
    assert (found.bitwise_tokens, found.bitwise_sequences) == (1, 1)
    assert (found.mult_prob_error, found.ess, found.chi2_token) == (1, 1, 0)
    assert found.pearson == pytest.approx(1)
    assert found.intervals["k3"] == (0, 0)


def test_one_bit_is_seen() -> None:
    """The twin: one token of one sequence, moved by one unit in the last place."""
    sampler, _ = some(2, 0.1)
    trainer = [each.copy() for each in sampler]
    trainer[3][0] = np.nextafter(trainer[3][0], np.float32(0))
    found = measure(sampler, trainer)
    assert found.bitwise_tokens == pytest.approx(1 - 1 / found.tokens)
    assert found.bitwise_sequences == pytest.approx(5 / 6)
    assert found.max_abs > 0


def test_intervals_hold_the_true_value_and_shrink_with_more_sequences() -> None:
    """K2 of normal r with spread s is s² / 2."""
    covered, widths = 0, {}
    for sequences in (8, 64):
        for seed in range(40):
            low, high = measure(*some(seed, 0.2, sequences), resamples=300).intervals["k2"]
            covered += sequences == 64 and low <= 0.02 <= high
            widths[sequences] = widths.get(sequences, 0) + high - low
    assert covered >= 34
    assert widths[64] < 0.6 * widths[8]


def test_intervals_are_over_sequences() -> None:
    """Tokens that all share their sequence's offset say no more than one token each."""
    generator = np.random.default_rng(3)
    offsets = generator.normal(0, 0.2, 10)
    sampler = [np.full(200, -1.0) for _ in offsets]
    found = measure(sampler, [each + x for each, x in zip(sampler, offsets, strict=True)])
    low, high = found.intervals["k1"]
    assert high - low > 0.1  # as independent tokens it would be 0.02


def test_every_measure_has_an_interval_around_it() -> None:
    found = measure(*some(4, 0.3))
    names = set(found.__slots__) - {"tokens", "sequences", "intervals"}
    assert set(found.intervals) == names
    for name, (low, high) in found.intervals.items():
        assert low <= getattr(found, name) <= high


def test_a_single_sequence_has_no_intervals() -> None:
    assert measure(*some(5, 0.3, 1)).intervals == {}


def test_a_huge_ratio_is_no_error() -> None:
    found = measure([np.full(400, -9.0)] * 2, [np.zeros(400)] * 2)
    assert math.isfinite(found.chi2_sequence)
    assert found.chi2_sequence > 1e200
    assert found.ratio_outside == 1


@pytest.mark.parametrize("sides", [([], []), ([np.zeros(2)], [np.zeros(3)])])
def test_sides_without_the_same_tokens_are_refused(sides: tuple[list, list]) -> None:
    with pytest.raises(ValueError, match="same tokens"):
        measure(*sides)


def test_the_effective_sample_size_stays_a_share_for_any_ratio() -> None:
    found = measure([np.array([-500.0, -1.0])], [np.array([0.0, -1.0])], resamples=0)
    assert found.ess == pytest.approx(0.5)


@pytest.mark.parametrize("trainer", [-0.3, -0.7])
def test_equal_probabilities_have_no_correlation(trainer: float) -> None:
    found = measure([np.full(7, -0.3)], [np.full(7, trainer)], resamples=0)
    assert np.isnan(found.pearson)


def test_the_correlation_of_nearly_certain_tokens_keeps_its_digits() -> None:
    sampler = np.array([-1e-9, -2e-9, -4e-9, -3e-9])
    found = measure([sampler], [sampler * 2], resamples=0)
    assert found.pearson == pytest.approx(1, abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_trainer_that_overflows_gives_no_number_and_no_warning() -> None:
    found = measure([np.array([-1.0]), np.array([-2.0])], [np.array([np.nan]), np.array([-2.0])])
    assert np.isnan(found.k3)
    assert found.bitwise_tokens == 0.5
