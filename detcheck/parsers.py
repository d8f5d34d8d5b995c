"""Parsers of answers: from the text of a completion to the answer that an evaluation scores.

    number       the last number, without thousands separators: `1,234.50` is `1234.5`
    letter       the letter of a choice, A to Z, such as `(B)`, `B.` or `the answer is B`; a small
                 letter only if it is the whole text, or in `answer: b` and `the answer is (b)`
    regex:P      the last match of the regular expression P that is not empty; its first group, if
                 it has one
    json:path    a member of the first JSON value, such as `json:result.items.0`
    last-line    the last line that is not empty
    exact        the whole text

Spaces around an answer do not count. A parser returns None if the text holds no such answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any

from detcheck.errors import UsageError

AnswerParser = Callable[[str], str | None]
"""From the text of a completion to its answer; None if it holds none."""

_SEPARATOR = r"(?:,|_|\{,\}|\\,|[\u00a0\u2009\u202f])"
"""Between thousands; `{,}` and `\\,` are LaTeX's, the last three are narrow or firm spaces."""
_NUMBER = re.compile(
    rf"(?:(?<!\w)[-+−])?(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
    r"|(?:(?<!\w)[-+−])?(?<!\d)\.\d+"
)
"""A sign after a letter or a digit is a hyphen or a minus between two numbers, as in `10-15`."""
_GAP = r"[\s:*_'\"‘“`$]{0,12}(?:\\(?:boxed|text|textbf|mathrm)\{)?"
"""Between `answer` and its letter: marks that models put around an answer, LaTeX among them."""
_END = r"[*_'\"’”`$)\]}.:]*"
_LETTER = r"[(\[]?([A-HJ-Z]|I(?!['’]|[ \t]+[a-z]))\b"
"""I before a small letter or an apostrophe is a word, as in `Answer: I do not know`."""
_SMALL = rf"(?:\(([a-z])\)|(?<=:)[\s*_]{{0,4}}([a-z]){_END}[ \t\r]*$)"
"""A small letter in brackets, or alone after a colon: otherwise `a` is a word."""
_CHOSEN = re.compile(rf"(?i:answer)(?i:\s+is)?{_GAP}(?:{_LETTER}|{_SMALL})", re.MULTILINE)
_NAMED = re.compile(rf"(?i:choice|option)(?i:\s+is)?{_GAP}{_LETTER}")
_WHOLE = re.compile(rf"\A[\s*_'\"‘“`$]*[(\[]?([A-Za-z]){_END}\s*\Z")
_ALONE = re.compile(rf"^[ \t*_'\"‘“`$]*[(\[]?([A-Z]){_END}[ \t\r]*$", re.MULTILINE)
_MARKED = re.compile(r"\(([A-Z])\)|(?:^|(?<=\s))([A-Z])[).:](?=\s|$)")
_STANDING = re.compile(r"(?<![\w'’.-])([B-HJ-Z])(?![\w'’+#-]|\.\w)")
"""A and I are words as well: they count only in one of the forms above. `X-ray`, `U.S.` and `C++`
name no choice."""


def answer_parser(name: str) -> AnswerParser:
    """The parser called `name`, such as `number` or `regex:P`.

    Raises UsageError if there is no such parser, or its expression is not valid.
    """
    kind, colon, argument = name.partition(":")
    if colon and argument and kind in ("regex", "json"):
        return _regex(argument) if kind == "regex" else _json(argument)
    if name in _PLAIN:
        return _PLAIN[name]
    raise UsageError(
        f"`answer` must be one of {', '.join(_PLAIN)}, regex:PATTERN or json:PATH, not {name!r}."
    )


def _exact(text: str) -> str | None:
    return text.strip() or None


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def _number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return _canonical(found[-1]) if found else None


def _canonical(number: str) -> str:
    """A number in one form: `1,234.50`, `+1234.5` and `1.2345e3` are `1234.5`. No digit is lost."""
    plain = re.sub(_SEPARATOR, "", number).replace("−", "-")
    try:
        value = Decimal(plain).normalize(Context(len(plain), Emin=MIN_EMIN, Emax=MAX_EMAX))
    except ArithmeticError:  # an exponent beyond what Decimal takes
        return plain
    if abs(value.adjusted()) > 100:  # written out it would be endless
        return str(value)
    return "0" if value == 0 else f"{value:f}"


def _letter(text: str) -> str | None:
    if whole := _WHOLE.match(text):
        return whole[1].upper()
    for pattern in (_CHOSEN, _NAMED, _ALONE, _MARKED, _STANDING):
        letters = [letter for match in pattern.finditer(text) for letter in match.groups("")]
        found = [str(letter) for letter in letters if letter]
        if found:
            return found[-1].upper()
    return None


_PLAIN: dict[str, AnswerParser] = {
    "number": _number,
    "letter": _letter,
    "last-line": _last_line,
    "exact": _exact,
}


def _regex(pattern: str) -> AnswerParser:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"The pattern of `answer` is not a regular expression ({error}): {pattern!r}."
        ) from error

    def parse(text: str) -> str | None:
        group = 1 if compiled.groups else 0
        found = [(match[group] or "").strip() for match in compiled.finditer(text)]
        return next((answer for answer in reversed(found) if answer), None)

    return parse


def _json(path: str) -> AnswerParser:
    steps = path.split(".")

    def parse(text: str) -> str | None:
        try:
            value = _member(_first_json(text), steps)
            found = value.strip() if isinstance(value, str) else _as_text(value)
        except (LookupError, ValueError, TypeError, RecursionError):
            return None
        return found.encode(errors="replace").decode() or None  # JSON may escape half a character

    return parse


def _as_text(value: Any) -> str:
    """A JSON value that is no text in one form: 3.0 is 3, and members are sorted by name."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _canonical(json.dumps(value))
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _first_json(text: str) -> Any:
    """The first JSON object or list in `text`; raises ValueError if there is none."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            return decoder.raw_decode(text, match.start())[0]
        except ValueError:
            continue
    raise ValueError("no JSON")


def _member(value: Any, steps: list[str]) -> Any:
    for step in steps:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value
