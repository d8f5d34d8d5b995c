"""Untrusted words (prompts, model output, paths, server messages) made fit to show to a person."""

from __future__ import annotations

import re
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

    Only what could begin something, on GitHub too, becomes an entity. Mentions, addresses and issue
    numbers are looked for after entities are read, so an empty comment parts them.
    """
    escaped = _MARKUP.sub(_harmless, one_line(text))
    return _BLOCK.sub(lambda match: match.group()[:-1] + _entity(match.group()[-1]), escaped)


_MARKUP = re.compile(
    r"(?P<reference>@(?=\S)|#(?=\d)|\b(?i:gh)-(?=\d))"
    r"|[`*\[<|~$]"  # code, emphasis, link, HTML, table cell, strikethrough, mathematics
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, unless inside a word
    r"|\\(?=[!-/:-@\[-`{-~]|$)"  # escape
    r"|&(?=#?\w+;)"  # entity
    r"|:(?=//)|(?<=[wW]{3})\."  # link without brackets
)
_BLOCK = re.compile(
    r"^ (?= {3})"  # indented code
    r"|^\s*(?:>|[-+#=](?=[-+#=]*(?:\s|$))|\d+[.)](?=\s|$))"  # quotation, list, heading, rule
)
_NAMED = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def _harmless(match: re.Match[str]) -> str:
    found = match.group()
    return f"{found}<!-- -->" if match["reference"] else _entity(found)


def _entity(character: str) -> str:
    return _NAMED.get(character, f"&#{ord(character)};")


def _visible(character: str) -> str:
    if character in JOINERS:
        return character
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode("ascii") if hidden else character
