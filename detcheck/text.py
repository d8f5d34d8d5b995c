"""Untrusted words (prompts, model output, paths, server messages) made fit to show to a person."""

from __future__ import annotations

import string
import unicodedata

JOINERS = "\u200c\u200d"
"""Format characters that build letters and emoji; the others can hide or reorder text."""


def one_line(text: str) -> str:
    """`text` on one line: breaks, control, direction and unpaired characters become escapes."""
    return "".join(_visible(character) for character in text)


def quoted(text: str, width: int = 40) -> str:
    """`text` in quotation marks, on one line, cut to about `width` characters."""
    cut = text if len(text) <= width else text[: width - 1].rstrip() + "…"
    return f'"{one_line(cut)}"'


def escape_markdown(text: str) -> str:
    """`text` on one line as Markdown that renders as itself: no markup, HTML, link or mention.

    Every ASCII punctuation character becomes an entity: entities can begin no Markdown construct,
    not even a table cell or an autolink.
    """
    return "".join(
        f"&#{ord(character)};" if character in string.punctuation else character
        for character in one_line(text)
    )


def _visible(character: str) -> str:
    if character in JOINERS:
        return character
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode("ascii") if hidden else character
