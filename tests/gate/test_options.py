"""The options of a gate: what they mean together, and which values are refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from detcheck.errors import UsageError
from detcheck.gate import GateOptions
from detcheck.gate.options import parse_duration, split_kernels
from detcheck.kernels.settings import AS_SERVED, BATCH_INVARIANT, FULLY_INVARIANT, STOCK


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (GateOptions(), 1),
        (GateOptions(max_distinct=5), 5),
        (GateOptions(baseline=Path("x")), None),
        (GateOptions(max_distinct=1, baseline=Path("x")), 1),
    ],
)
def test_the_limit_is_one_unless_something_was_asked_for(options, limit):
    assert options.limit == limit


@pytest.mark.parametrize(
    ("kernels", "level"),
    [
        (BATCH_INVARIANT, "bits"),
        (FULLY_INVARIANT, "bits"),
        ("batch-invariant:matmul", "bits"),
        (STOCK, "tokens"),
        (AS_SERVED, "tokens"),
    ],
)
def test_the_level_follows_what_the_kernels_claim(kernels, level):
    assert GateOptions().level_of(kernels) == level
    assert GateOptions(level="text").level_of(kernels) == "text"
    assert GateOptions(answer="number").level_of(kernels) == "answer"


@pytest.mark.parametrize(
    ("available", "judged"),
    [
        ((STOCK, BATCH_INVARIANT), BATCH_INVARIANT),
        ((STOCK,), STOCK),
        (("batch-invariant:matmul",), "batch-invariant:matmul"),
        ((STOCK, "batch-invariant:matmul", BATCH_INVARIANT), BATCH_INVARIANT),
    ],
)
def test_the_kernels_judged_unless_named(available, judged):
    assert GateOptions().kernels_of(available) == (judged,)


def test_kernels_are_not_guessed():
    with pytest.raises(UsageError, match=r"by `kernels` .* such as batch-invariant:matmul"):
        GateOptions().kernels_of((STOCK, "batch-invariant:matmul"))


def test_kernels_that_a_run_lacks_are_refused():
    with pytest.raises(UsageError, match="no batch-invariant kernels, only stock"):
        GateOptions(kernels=BATCH_INVARIANT).kernels_of((STOCK,))


@pytest.mark.parametrize("kernels", ["stock, batch-invariant,stock", ("stock", "batch-invariant")])
def test_kernels_are_a_text_or_a_list(kernels):
    assert GateOptions(kernels=kernels).kernels == (STOCK, BATCH_INVARIANT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_distinct": 0}, "`max_distinct` must be at least 1, not 0"),
        ({"max_distinct": -1}, "`max_distinct` must be at least 1, not -1"),
        ({"min_comparisons": 19}, "`min_comparisons` must be at least 20, not 19"),
        ({"level": "bytes"}, "Unknown level 'bytes'"),
        ({"level": "text", "answer": "number"}, "`answer` is for the level answer, not text"),
        ({"answer": "numbers"}, "`answer` must be one of number"),
        ({"max_distinct": "3"}, "`max_distinct` must be a whole number, not '3'"),
        ({"require_control": "yes"}, "`require_control` must be true or false"),
        ({"kernels": "fast"}, "Unknown kernels 'fast'"),
        ({"kernels": ()}, "`kernels` names none"),
        ({"kernels": " , "}, "`kernels` names none"),
        ({"model": ""}, "`model` is empty"),
        ({"model": " "}, "`model` is empty"),
        ({"max_age": "2"}, "`max_age` must be a duration such as"),
    ],
)
def test_values_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        GateOptions(**options)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("1.5h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("1w", timedelta(weeks=1)),
        ("1d12h", timedelta(hours=36)),
    ],
)
def test_durations(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "2", "h", "-2h", "2 h", "2h ", "2y", "2h!", "0h", "1e3h", "99999999999w"]
)
def test_no_durations(text):
    with pytest.raises(UsageError, match="`max_age`"):
        parse_duration(text)


def test_lists_of_kernels_are_split_once_each():
    assert split_kernels("stock, batch-invariant,stock") == (STOCK, BATCH_INVARIANT)
    assert split_kernels(" , ") == ()
