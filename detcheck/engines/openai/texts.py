"""Texts as they are compared when answers to different prompts may repeat these prompts."""

from __future__ import annotations

import re


def own_words(text: str, prompt: str = "") -> str:
    """`text` without `prompt` and without words that hold a digit.

    A request's number or time is no answer, and neither is the question.
    """
    rest = text.replace(prompt, " ") if prompt else text
    return " ".join(re.sub(r"\S*\d\S*", " ", rest).lower().split())
