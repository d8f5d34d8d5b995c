"""`repeat_trial`: equal bursts to one server, which answers them alike or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detcheck.analysis import Analysis
from detcheck.analysis.evidence import FAIL
from detcheck.gate import judge
from detcheck.report.checks import trust_checks

from .server import ToyServer

MAX_NEW_TOKENS = 20
"""Unlike that of the checks: it tells the experiment's requests from theirs."""
BURST = {
    "batch_sizes": (8,),
    "completions": 32,
    "repeat_trial": 3,
    "max_new_tokens": MAX_NEW_TOKENS,
}


def last_burst_differs() -> Callable[[int, dict[str, Any], int], str | None]:
    """Of the experiment's bursts of eight, the third gets another text."""
    asked: list[int] = []

    def canned(number: int, body: dict[str, Any], in_flight: int) -> str | None:
        if body["max_tokens"] != MAX_NEW_TOKENS:
            return None
        asked.append(number)
        return "The sky is green." if 16 < len(asked) <= 24 else "The sky is blue."

    return canned


def about_repeats(analysis: Analysis) -> dict[str, bool | None]:
    return {check.sentence: check.passed for check in trust_checks(analysis)}


def test_a_server_that_answers_an_equal_burst_otherwise_is_found(
    serve: Callable[..., ToyServer], measure: Callable[..., Analysis]
) -> None:
    analysis = measure(serve(canned=last_burst_differs()), **BURST)
    assert [group.repeats_differ for group in analysis.groups] == [8]
    found = about_repeats(analysis)
    assert found["the same requests, sent together again, got 8 other answers"] is False
    assert judge(analysis).value == FAIL


def test_the_twin_answers_equal_bursts_alike(
    serve: Callable[..., ToyServer], measure: Callable[..., Analysis]
) -> None:
    analysis = measure(serve(), **BURST)
    assert [group.repeats_differ for group in analysis.groups] == [0]
    assert about_repeats(analysis)["the same requests, sent together again, got the same answers"]
    assert judge(analysis).value != FAIL
