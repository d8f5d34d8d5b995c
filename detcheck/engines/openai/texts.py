"""Texts as they are compared when two answers may name different numbers."""

from __future__ import annotations

import re


def without_numbers(text: str) -> str:
    """`text` without words that hold a digit: a request's number or time is no answer."""
    return " ".join(re.sub(r"\S*\d\S*", " ", text).lower().split())
