"""How a report writes words and numbers: tails, clips to a width, counts, shares and factors.

Escaping for HTML, Markdown or CSV comes after this, in the module that writes the format.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from detcheck.text import one_line

SPACE_MARK = "␣"
_SPACES = re.compile("^ +")


def tail(text: str, limit: int) -> str:
    """The last `limit` characters on one line, from a word's start where one is near."""
    text = text.strip()
    if len(text) <= limit:
        return one_line(text)
    shown = text[-limit:]
    space = shown.find(" ")
    if 0 <= space < limit // 3:
        shown = shown[space + 1 :]
    return "… " + one_line(shown)


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
    shown = one_line(text[: 4 * cells])
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


def factor(value: float | None) -> str:
    """How many times as much: `1.24×`."""
    return "–" if value is None else f"{value:.2f}×"


def came_back(completions: int, asked: int) -> str:
    """How many came back, with how many were asked for where that is another number."""
    return f"{completions:,}" if completions == asked else f"{completions:,} of {asked:,}"
