"""The kind of a flip: both gaps count, against a noise that was measured."""

from __future__ import annotations

import math

import pytest

from detcheck.analysis.flips import BEYOND_ROUNDING, FlipJudge, judge
from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, UNKNOWN
from detcheck.rundir import StoredVariant

from .answers import stored, stored_text, text_variant


@pytest.mark.parametrize(
    ("reference_gap", "variant_gap", "noise", "kind", "gap"),
    [
        (0.0, 0.05, 0.1, TIE, 0.0),
        (0.05, 0.0, 0.1, TIE, 0.0),
        (0.0, 0.0, 0.0, TIE, 0.0),
        (0.05, 0.02, 0.1, NEAR_TIE, 0.05),
        (0.02, 0.05, 0.1, NEAR_TIE, 0.05),
        (0.05, 0.5, 0.1, CONFIDENT, 0.5),
        (0.5, 0.05, 0.1, CONFIDENT, 0.5),
        (0.5, 0.5, 0.0, CONFIDENT, 0.5),
        (math.nan, 0.5, 0.1, CONFIDENT, 0.5),
        (math.inf, math.nan, 0.1, UNKNOWN, None),
    ],
)
def test_kind_and_the_gap_that_decides_it(
    reference_gap: float, variant_gap: float, noise: float, kind: str, gap: float | None
) -> None:
    check_kind(reference_gap, variant_gap, noise, kind, gap)


@pytest.mark.parametrize(
    ("reference_gap", "variant_gap", "noise"), [(0.0, 9.0, 0.25), (9.0, 0.0, 0.25), (0.0, 0.3, 0.0)]
)
def test_a_tie_under_one_load_does_not_hide_a_gap_beyond_the_noise_under_the_other(
    reference_gap: float, variant_gap: float, noise: float
) -> None:
    check_kind(reference_gap, variant_gap, noise, CONFIDENT, max(reference_gap, variant_gap))


@pytest.mark.parametrize(
    ("reference_gap", "variant_gap", "kind", "gap"),
    [
        (0.5, 0.5, UNKNOWN, 0.5),
        (9.0, 9.0, UNKNOWN, 9.0),
        (0.0, 9.0, UNKNOWN, 9.0),
        (0.0, math.nan, UNKNOWN, 0.0),
        (0.0, 0.0, TIE, 0.0),
    ],
)
def test_without_measured_noise_only_two_gaps_of_zero_have_a_kind(
    reference_gap: float, variant_gap: float, kind: str, gap: float
) -> None:
    check_kind(reference_gap, variant_gap, None, kind, gap)


def check_kind(
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


@pytest.mark.parametrize(
    ("chosen", "runner_up", "won"),
    [
        (" cat", " cat", True),
        (" cat", " dog", False),
        (" cat", "", None),  # not told, or a token of no text: it names nothing
        (" cat", "\ufffd", None),  # some bytes of a character: several tokens read like this
        ("\ufffd", "\ufffd", None),
    ],
)
def test_a_runner_up_is_known_by_text_only_if_the_text_names_it(
    chosen: str, runner_up: str, won: bool | None
) -> None:
    reference = text_variant([" a", " the"], [2.0, 0.5], ["-", runner_up])
    variant = text_variant([" a", chosen], [2.0, 0.5], ["-", "-"])
    flip = judge(reference, variant, 3, 1.0)
    assert (flip.kind, flip.reference_gap, flip.runner_up_won) == (NEAR_TIE, 0.5, won)


def test_if_one_ended_the_gap_of_the_other_decides() -> None:
    short = stored([1], gaps=[2], runners_up=[9])
    long = stored([1, 2], gaps=[2, 0.05], runners_up=[9, 9])
    for reference, variant in ((short, long), (long, short)):
        flip = judge(reference, variant, 1, 0.1)
        assert flip.kind == NEAR_TIE
        assert flip.runner_up_won is None
    assert judge(short, long, 1, 0.1).reference_gap is None
    assert judge(long, short, 1, 0.1).variant_gap is None


def branch(token: int, *gaps: float) -> list[StoredVariant]:
    """Answers that go on with `token` after token 1, and then differ; most common first."""
    return [stored([1, token, 10 + i], gaps=[2.0, gap, 2.0]) for i, gap in enumerate(gaps)]


def test_a_branch_is_judged_by_its_most_common_answer() -> None:
    variants = [*branch(2, 0.25, 0.0), *branch(3, 0.125, 0.5)]
    flip = FlipJudge(variants, 0.3).flip([0, 1], [2, 3], 1)
    assert (flip.kind, flip.reference_gap, flip.variant_gap) == (NEAR_TIE, 0.25, 0.125)


@pytest.mark.parametrize("faulty_is_common", [True, False])
def test_common_answers_do_not_hide_one_that_rounding_cannot_explain(
    faulty_is_common: bool,
) -> None:
    beyond = 0.3 * BEYOND_ROUNDING + 0.1
    good, bad = branch(2, 0.0, 0.125), branch(3, 0.0, beyond)
    if faulty_is_common:
        good, bad = bad, good
    flip = FlipJudge([*good, *bad], 0.3).flip([0, 1], [2, 3], 1)
    assert (flip.kind, flip.gap) == (CONFIDENT, pytest.approx(beyond))


def test_branches_of_text_are_judged_at_their_token() -> None:
    variants = [
        text_variant([" a", " the", " x"], [2.0, 0.0, 2.0], ["-"] * 3),
        text_variant([" a", " then", " y"], [2.0, 0.125, 2.0], ["-"] * 3),
        text_variant([" a", " then", " z"], [2.0, 5.0, 2.0], ["-"] * 3),
    ]
    assert FlipJudge(variants[:2], 0.3).flip([0], [1], 6).kind == TIE
    assert FlipJudge(variants, 0.3).flip([0], [1, 2], 6).kind == CONFIDENT
