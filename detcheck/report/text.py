"""How a report writes words and numbers: tails, clips to a width, counts, shares and factors.

Escaping for HTML, Markdown or CSV comes after this, in the module that writes the format.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from detcheck.analysis.results import FLIP_KINDS
from detcheck.text import count, one_line

SPACE_MARK = "␣"
_SPACES = re.compile("^ +")


def tail(text: str, limit: int) -> str:
    """The last `limit` characters on one line, from the start of a word if one is near."""
    text = text.strip()
    if len(text) <= limit:
        return one_line(text)
    shown = text[-limit:]
    space = shown.find(" ")
    if 0 <= space < limit // 3:
        shown = shown[space + 1 :]
    return "… " + one_line(shown)


def same_start(texts: Sequence[str]) -> list[str]:
    """`texts` as alternatives: a space that all begin with is dropped, other ones are marked."""
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
    """`text` on one line in at most `cells` terminal cells; if it was cut, it ends with `…`."""
    shown = one_line(text[: 4 * cells])
    if cell_width(shown) <= cells and len(text) <= 4 * cells:
        return shown
    width, end = 0, 0
    for end, char in enumerate(shown):  # noqa: B007 (only the index is used)
        width += _char_width(char)
        if width > cells - 1:
            break
    cut = shown[:end]
    space = cut.rfind(" ")
    return (cut[:space] if space > cells // 2 else cut).rstrip() + "…"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, or the nearest whole number from 100 on; `–` for None or NaN."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share of 1 in %, never rounded to 0 or 100 unless it is just that; `–` for None or NaN."""
    if share is None or math.isnan(share):
        return "–"
    if 0 < share < 0.001:
        return "<\u00a00.1\u00a0%"
    if 0.999 < share < 1:
        return ">\u00a099.9\u00a0%"
    digits = 0 if share in (0, 1) else 1
    return f"{100 * share:.{digits}f}\u00a0%"


def factor(value: float | None) -> str:
    """A multiple: `1.24×`; `–` for None."""
    return "–" if value is None else f"{value:.2f}×"


def came_back(completions: int, asked: int) -> str:
    """How many came back, and of how many if some are missing: `40 of 48`."""
    return f"{completions:,}" if completions == asked else f"{completions:,} of {asked:,}"


def of_kind(flips: int, kind: str) -> str:
    """`1 tie`, `2 near ties`, but `2 confident`."""
    return count(flips, kind) if kind.endswith("tie") else f"{flips:,} {kind}"


def flip_counts(flips: Mapping[str, int]) -> str:
    """Flips by kind, `2 ties, 1 confident`; empty without flips."""
    return ", ".join(of_kind(flips[kind], kind) for kind in FLIP_KINDS if flips.get(kind))


def short_kernels(kernels: str) -> str:
    """A kernels setting by a short name: `only matmul` for `batch-invariant:matmul`."""
    subset = kernels.partition(":")[2]
    return f"only {subset}" if subset else kernels


def traffic_words(traffic: str) -> str:
    """The content of an experiment's batches, by its traffic."""
    return {"alone": "one prompt alone", "mixed": "one prompt and others"}.get(traffic, traffic)
