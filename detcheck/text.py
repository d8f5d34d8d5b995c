"""Untrusted text (prompts, model output, paths, server messages) made safe to show.

A control character, a direction override or a lone surrogate can hide a difference between two
answers, reorder a table, control a terminal or break an encoder. So each is shown by name.
"""

from __future__ import annotations

import re

HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f\xad"
    "\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180e"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
    "]"
    # A joiner is part of emoji and of several scripts; beside ASCII it only hides something.
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
"""Characters that show nothing by themselves, or that change how others are shown."""
MARKS = {"\n": "↵", "\t": "⇥"}
"""How the most frequent ones are shown."""


def stand_in(character: str) -> str:
    """How a hidden character is shown: `↵`, `\\x1b`, `\\u202e`."""
    return MARKS.get(character) or character.encode("unicode_escape").decode("ascii")


def cap(text: str, limit: int | None) -> tuple[str, str]:
    """The first `limit` characters, and a note on how many were left out (empty if none)."""
    if limit is None or len(text) <= limit:
        return text, ""
    return text[:limit], f"… ({count(len(text) - limit, 'more character')})"


def one_line(text: str, limit: int | None = None) -> str:
    """`text` on one line with every hidden character shown, capped at `limit` characters.

    A note counts the characters that are cut off: `… (98,304 more characters)`.
    """
    shown, more = cap(text, limit)
    return HIDDEN.sub(lambda match: stand_in(match.group()), shown) + more


def quoted(text: str, width: int = 40) -> str:
    """`text` in quotation marks, on one line, cut to about `width` characters."""
    cut = text if len(text) <= width else text[: width - 1].rstrip() + "…"
    return f'"{one_line(cut)}"'


def quoted_end(text: str, width: int = 40) -> str:
    """`text` in quotation marks, on one line, with only its last `width` characters or so."""
    cut = text if len(text) <= width else "…" + text[1 - width :].lstrip()
    return f'"{one_line(cut)}"'


def escape_markdown(text: str) -> str:
    """`text` on one line as Markdown that renders as itself: no markup, HTML, link or mention.

    Only characters that could begin markup, on GitHub too, become entities. GitHub looks for
    mentions, addresses and issue numbers after it has read entities, so an empty comment divides
    these.
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


def count(number: int, noun: str) -> str:
    """`1 answer`, `1,000 answers`; also `2 batches`, `2 passes` and `2 replies`."""
    return f"{number:,} {noun if number == 1 else _plural(noun)}"


def amount(number: float, noun: str) -> str:
    """`1.3 points`, and `1 point` if that is how it is shown: three digits, without a sign."""
    shown = f"{number:.3g}"
    return f"{shown} {noun if shown == '1' else _plural(noun)}"


def signed(number: float, noun: str) -> str:
    """The same with the sign before it: `+1 point`, `-0.5 points`."""
    return f"{'-' if number < 0 else '+'}{amount(abs(number), noun)}"


def verb(number: int, one: str, several: str) -> str:
    """The form of a verb that agrees with `number`: `differs` for 1, else `differ`."""
    return one if number == 1 else several


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "ch", "x")) else "s")
