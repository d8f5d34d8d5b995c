"""Words and numbers as HTML: model output escaped, isolated and capped."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from detcheck.report.costs import cost_range
from detcheck.report.figure_style import Drawing
from detcheck.report.prompt_view import ListedVariant, flip_reason
from detcheck.report.text import came_back, clip, factor, flip_counts, number, percent, tail
from detcheck.report.word_diff import DiffPart
from detcheck.text import HIDDEN, cap, count, stand_in


def words(text: str, limit: int | None = None, lines: bool = False) -> Markup:
    """Untrusted text as inline HTML: escaped, isolated, invisible characters shown, capped.

    With `lines`, line breaks are kept as such instead of being shown as marks.
    """
    shown, more = cap(str(text), limit)
    parts: list[Markup] = []
    end = 0
    for match in HIDDEN.finditer(shown):
        parts.append(escape(shown[end : match.start()]))
        parts.append(_mark(match.group(), lines))
        end = match.end()
    parts.append(escape(shown[end:]))
    note = Markup('<span class="more">{}</span>').format(more) if more else Markup("")
    return Markup('<bdi class="verbatim">{}</bdi>{}').format(Markup("").join(parts), note)


def quote(text: str, limit: int | None = None) -> Markup:
    """A prompt in quotation marks."""
    return Markup("“{}”").format(words(text, limit))


def piece(text: str) -> Markup:
    """The next words of an answer, or that it ends."""
    return words(text, 200) if text else Markup("<small>(ends here)</small>")


def first_words(text: str) -> tuple[str, str]:
    """The first few words, which people look for, and the rest."""
    match = re.match(r"\s*(?:\S{1,40}\s+){0,2}\S{1,40}", text)
    end = match.end() if match else min(len(text), 40)
    return text[:end].lstrip(" "), text[end:]


def whole_answer(line: ListedVariant, limit: int) -> Markup:
    """The text of a variant in about `limit` characters, its start shared with the reference dim.

    If the shared start is longer than half of that, only its end is shown.
    """
    shared = line.shared if len(line.shared) <= limit // 2 else tail(line.shared, limit // 2)
    start = Markup('<span class="dim">{}</span>').format(words(shared, None, lines=True))
    rest = words(line.rest, limit - len(shared), lines=True)
    return Markup("{}{}").format(start if shared else "", rest)


def diff_part(part: DiffPart) -> Markup:
    """A stretch of an answer that is compared with another: marked if only this one has it."""
    inner = words(part.text, 2000, lines=True)
    return inner if part.shared else Markup('<span class="only">{}</span>').format(inner)


def svg(drawing: Drawing) -> Markup:
    """A drawing of detcheck's own, in which all text is escaped already."""
    return Markup(drawing.body)


def _mark(character: str, lines: bool) -> Markup:
    if lines and character == "\n":
        return Markup("\n")
    return Markup('<span class="ctl">{}</span>').format(stand_in(character))


FILTERS = {
    "came_back": came_back,
    "clip": clip,
    "cost": cost_range,
    "count": count,
    "diff_part": diff_part,
    "factor": factor,
    "first_words": first_words,
    "flips": flip_counts,
    "number": number,
    "percent": percent,
    "piece": piece,
    "quote": quote,
    "svg": svg,
    "whole_answer": whole_answer,
    "why": flip_reason,
    "words": words,
}
"""The functions that templates call."""
