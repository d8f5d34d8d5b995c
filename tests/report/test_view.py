"""The words that every report uses for a single flip."""

from __future__ import annotations

import pytest

from detcheck.analysis.results import NEAR_TIE, TIE, UNKNOWN, Flip
from detcheck.report.prompt_view import flip_reason


@pytest.mark.parametrize(
    ("flip", "words"),
    [
        (
            Flip(TIE, 0.125, 0.0, 0.25, True),
            ": gaps 0.125 and 0 nats, noise 0.25, the runner-up won",
        ),
        (Flip(NEAR_TIE, None, 0.05, 0.1, False), ": gap 0.05 nats, noise 0.1, not the runner-up"),
        (Flip(UNKNOWN, None, None, None, None), ""),
    ],
)
def test_what_decides_the_kind_of_a_flip(flip: Flip, words: str) -> None:
    assert flip_reason(flip) == words
