from __future__ import annotations

import math

import numpy as np
import pytest

from detcheck.analysis.flips import SAFETY, group_noise, judge
from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, UNKNOWN

from .answers import stored, stored_text


@pytest.mark.parametrize(
    ("reference_gap", "variant_gap", "noise", "kind", "gap"),
    [
        (0.0, 0.3, 0.1, TIE, 0.0),
        (0.3, 0.0, 0.1, TIE, 0.0),
        (0.0, 0.0, 0.0, TIE, 0.0),
        (0.05, 0.02, 0.1, NEAR_TIE, 0.05),
        (0.02, 0.05, 0.1, NEAR_TIE, 0.05),
        (0.05, 0.5, 0.1, CONFIDENT, 0.5),
        (0.5, 0.05, 0.1, CONFIDENT, 0.5),
        (0.5, 0.5, 0.0, CONFIDENT, 0.5),
        (0.5, 0.5, None, UNKNOWN, 0.5),
        (0.0, 0.5, None, TIE, 0.0),
        (math.nan, 0.5, 0.1, CONFIDENT, 0.5),
        (math.inf, math.nan, 0.1, UNKNOWN, None),
    ],
)
def test_kind_and_the_gap_that_decides_it(
    reference_gap: float, variant_gap: float, noise: float | None, kind: str, gap: float | None
) -> None:
    reference = stored([1, 2], gaps=[2, reference_gap], runners_up=[9, 3])
    variant = stored([1, 3], gaps=[2, variant_gap], runners_up=[9, 2])
    flip = judge(reference, variant, 1, noise)
    assert (flip.kind, flip.gap) == (kind, gap and pytest.approx(gap))


def test_without_log_probabilities_the_kind_is_unknown() -> None:
    flip = judge(stored([1, 2]), stored([1, 3]), 1, 0.1)
    assert (flip.kind, flip.reference_gap, flip.variant_gap) == (UNKNOWN, None, None)
    assert flip.runner_up_won is None
    assert judge(stored_text("ab"), stored_text("ac"), 1, None).kind == UNKNOWN


@pytest.mark.parametrize(("token", "won"), [(3, True), (4, False)])
def test_whether_the_runner_up_won(token: int, won: bool) -> None:
    reference = stored([1, 2], gaps=[2, 0.5], runners_up=[9, 3])
    variant = stored([1, token], gaps=[2, 0.5], runners_up=[9, 2])
    assert judge(reference, variant, 1, 0.1).runner_up_won is won


def test_where_one_ends_the_gap_of_the_other_decides() -> None:
    short = stored([1], gaps=[2], runners_up=[9])
    long = stored([1, 2], gaps=[2, 0.05], runners_up=[9, 9])
    for reference, variant in ((short, long), (long, short)):
        flip = judge(reference, variant, 1, 0.1)
        assert flip.kind == NEAR_TIE
        assert flip.runner_up_won is None
    assert judge(short, long, 1, 0.1).reference_gap is None
    assert judge(long, short, 1, 0.1).variant_gap is None


def test_noise_is_unknown_where_nothing_was_measured() -> None:
    assert group_noise(np.array([], dtype=np.float32)) is None
    assert group_noise(np.array([np.nan, np.nan], dtype=np.float32)) is None


def test_noise_is_zero_where_everything_is_bitwise_equal() -> None:
    assert group_noise(np.array([0, 0, np.nan], dtype=np.float32)) == 0.0


def test_bitwise_equal_completions_do_not_dilute_the_noise() -> None:
    noise = np.array([0.0] * 90 + [0.25] * 10, dtype=np.float32)
    assert group_noise(noise) == SAFETY * 0.25


def test_a_fault_in_some_completions_does_not_set_the_yardstick() -> None:
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.09, 0.11, 600)
    faulty = rng.uniform(3.0, 9.0, 400)
    noise = np.concatenate([honest, faulty, np.zeros(500)]).astype(np.float32)
    found = group_noise(noise)
    assert found is not None
    assert 0.09 * SAFETY <= found <= 0.11 * SAFETY
