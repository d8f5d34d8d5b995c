"""Each parser finds the answer in the forms that models write it, and nothing in other text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.errors import UsageError
from detcheck.parsers import answer_parser


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("17 × 23 = 391.", "391"),
        ("It costs $1,234.50.", "1234.5"),
        ("#### -7", "-7"),
        ("between 3 and 5", "5"),
        ("about 1.2345e3 or so", "1234.5"),
        ("2.50", "2.5"),
        ("+4", "4"),
        ("-0.0", "0"),
        ("100", "100"),
        ("−3 degrees", "-3"),
        (".5", "0.5"),
        ("1,23", "23"),
        ("1e999999999999999999999", "1e999999999999999999999"),
        ("1e500", "1E+500"),
        ("1e9999999999", "1E+9999999999"),
        ("12345678901234567890123456789012345", "12345678901234567890123456789012345"),
        ("pages 10-15", "15"),
        ("on 2024-01-05", "5"),
        ("x=-5", "-5"),
        ("version 1.2.3", "3"),
        (r"\boxed{1{,}234}", "1234"),
        (r"1\,234", "1234"),
        ("1_000", "1000"),
        ("12\u202f345", "12345"),
        ("٣", "3"),
        ("NaN or inf", None),
        ("no number", None),
        ("", None),
    ],
)
def test_number(text: str, answer: str | None) -> None:
    assert answer_parser("number")(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        (" (C) ", "C"),
        ("**D**", "D"),
        ("The answer is B.", "B"),
        ("Answer: (A)", "A"),
        ("A. because a cat is an animal", "A"),
        ("First I thought (A), but it is (D).", "D"),
        ("I believe that B fits best", "B"),
        ("A cat sat on the mat", None),
        ("I do not know", None),
        ("BOTH", None),
        ("(b)", "B"),
        ("the b side", None),
        ("'B'", "B"),
        ("The answer is 'C'. A is too small, and so is D.", "C"),
        (r"The answer is \boxed{C}. B and D are too small.", "C"),
        ("**Answer:** B\n\nC and D are wrong.", "B"),
        ("answer: b", "B"),
        ("**Answer:** b.\nThe others are wrong.", "B"),
        ("The answer is (d).", "D"),
        ("The answer is a number", None),
        ("Answer: a number", None),
        ("Answer: I do not know", None),
        ("Answer: I don't know", None),
        ("Answer: I", "I"),
        ("The answer is D. Option A is wrong.", "D"),
        ("an X-ray in the U.S. of C++", None),
        ("", None),
    ],
)
def test_letter(text: str, answer: str | None) -> None:
    assert answer_parser("letter")(text) == answer


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("last-line", "thinking\n\n  so it is 4  \n\n", "so it is 4"),
        ("last-line", " \n ", None),
        ("exact", "  yes\n", "yes"),
        ("exact", " ", None),
        (r"regex:answer=(\w+)", "answer=a answer=b", "b"),
        (r"regex:\d+", "a1 b22", "22"),
        (r"regex:x(y)?", "x", None),
        (r"regex:\d*", "12 and", "12"),
        (r"regex:.*", "one\ntwo\n", "two"),
        ("json:a", '{"a": 3.0}', "3"),
        ("json:a", '{"a": {"y": 1, "x": "é"}}', '{"x": "é", "y": 1}'),
        ("json:a", r'{"a": "\ud800"}', "?"),
        (r"regex:\d+", "none", None),
        ("json:answer", 'Sure: {"answer": "yes"}', "yes"),
        ("json:a.0.b", '```json\n{"a": [{"b": 1.5}]}\n```', "1.5"),
        ("json:a", '{"b": 1}', None),
        ("json:a", '{"a": 1', None),
        ("json:a", "{not json} [1]", None),
        ("json:0", "{not json} [1]", "1"),
        ("json:a", '{"a": ["x"]}', '["x"]'),
        ("json:x", "[1]", None),
    ],
)
def test_other_parsers(name: str, text: str, answer: str | None) -> None:
    assert answer_parser(name)(text) == answer


@pytest.mark.parametrize("name", ["", "numbers", "regex:", "json:", "regex", "number:x"])
def test_an_unknown_parser_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"`answer` must be one of number, .* regex:PATTERN"):
        answer_parser(name)


def test_a_broken_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        answer_parser("regex:(")


def test_a_text_of_line_breaks_is_parsed_in_linear_time() -> None:
    """With backtracking over lines this takes minutes."""
    started = time.perf_counter()
    assert answer_parser("letter")("\n" * 100_000) is None
    assert answer_parser("letter")("answer" + " *" * 50_000) is None
    assert time.perf_counter() - started < 10


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for name in ("number", "letter", "last-line", "exact", "json:a", "regex:(.)"):
        found = answer_parser(name)(text)
        assert found is None or found == found.strip() != ""
