"""Model output made safe to show: invisible characters visible, lengths capped, wide text clipped.

What a model says is untrusted. A control character, a direction override or a lone surrogate can
hide a difference between two variants, reorder a table or break an encoder, so each is shown by
name. Escaping for HTML, Markdown or CSV comes after this, in the module that writes the format.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

INVISIBLE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f\xad"
    "\u0600-\u0605\u061c\u06dd\u070f\u08e2\u115f\u1160\u17b4\u17b5\u180e"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
    "]"
    # A joiner is part of emoji and of several scripts; beside ASCII it only hides something.
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
"""Characters that show nothing by themselves, or that change how others are shown."""

NEWLINE_MARK = "↵"
TAB_MARK = "⇥"
SPACE_MARK = "␣"
_SPACES = re.compile("^ +")


def char_name(char: str) -> str:
    """Visible stand-in of one invisible character: `↵`, `␛` or `⟨U+202E⟩`."""
    code = ord(char)
    if char in "\n\t":
        return NEWLINE_MARK if char == "\n" else TAB_MARK
    if code < 0x20:
        return chr(0x2400 + code)
    return f"⟨U+{code:04X}⟩"


def visible(text: str, limit: int | None = None) -> str:
    """`text` on one line with every invisible character shown, capped at `limit` characters.

    What is cut off is counted: `… (98,304 more characters)`.
    """
    shown, more = cap(text, limit)
    return INVISIBLE.sub(lambda match: char_name(match.group()), shown) + more


def cap(text: str, limit: int | None) -> tuple[str, str]:
    """The first `limit` characters, and a note on how many were left out (empty if none)."""
    if limit is None or len(text) <= limit:
        return text, ""
    left = len(text) - limit
    return text[:limit], f"… ({left:,} more character{'s' if left != 1 else ''})"


def tail(text: str, limit: int) -> str:
    """The last `limit` characters on one line, from a word's start where one is near."""
    text = text.strip()
    if len(text) <= limit:
        return visible(text)
    shown = text[-limit:]
    space = shown.find(" ")
    if 0 <= space < limit // 3:
        shown = shown[space + 1 :]
    return "… " + visible(shown)


def same_start(texts: Sequence[str]) -> list[str]:
    """`texts` as alternatives: the space that all begin with is dropped, any other is shown."""
    if all(text.startswith(" ") for text in texts if text):
        return [text[1:] for text in texts]
    return [_SPACES.sub(lambda spaces: SPACE_MARK * len(spaces.group()), text) for text in texts]


def cell_width(text: str) -> int:
    """Width in terminal cells: East Asian wide characters and emoji take two, marks none."""
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, cells: int) -> str:
    """`text` on one line in at most `cells` cells, ended by `…` where it was cut."""
    shown = visible(text[: 4 * cells])
    if cell_width(shown) <= cells and len(text) <= 4 * cells:
        return shown
    width, end = 0, 0
    for end, char in enumerate(shown):  # noqa: B007 (the index is what we are after)
        width += _char_width(char)
        if width > cells - 1:
            break
    cut = shown[:end]
    space = cut.rfind(" ")
    return (cut[:space] if space > cells // 2 else cut).rstrip() + "…"


def count(number: int, noun: str) -> str:
    """`1 answer`, `1,000 answers`."""
    plural = noun if number == 1 else noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {plural}"


def number(value: float | None, digits: int = 3) -> str:
    """A few significant digits without exponent where that reads well; `–` for None."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share as a percentage that never rounds something to nothing or to everything."""
    if share is None or math.isnan(share):
        return "–"
    if 0 < share < 0.001:
        return "<\u00a00.1\u00a0%"
    if 0.999 < share < 1:
        return ">\u00a099.9\u00a0%"
    digits = 0 if share in (0, 1) else 1
    return f"{100 * share:.{digits}f}\u00a0%"
