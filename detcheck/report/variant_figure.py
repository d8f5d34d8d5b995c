"""How many completions each variant has: bars that begin at zero, the rarest gathered in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from detcheck.analysis.results import Group
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.text import clip, short_kernels
from detcheck.text import count

MAX_ROWS = 12
"""Bars of all kernels settings together."""
MIN_ROWS_EACH = 2
ROW_HEIGHT = 21.0
TITLE = "Completions of each variant"
CAPTION = "Variants are numbered from the most common, for each kernels setting by itself."


@dataclass(frozen=True, slots=True)
class _Bar:
    kernels: str
    name: str
    completions: int
    gathered: bool
    """True if it stands for several variants."""


def variants_by_rank(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Completions of each variant, most common first, one colour for each kernels setting.

    None if no completion came back.
    """
    groups = [group for group in groups if group.variants]
    if not groups:
        return None
    each = max(MIN_ROWS_EACH, MAX_ROWS // len(groups))
    spare = sum(max(0, each - group.distinct) for group in groups)
    bars = [bar for group in groups for bar in _bars_of(group, each + spare)]
    named = len(groups) > look.MAX_LEGEND
    figure = look.new_figure(height=58 + 46 + ROW_HEIGHT * (len(bars) + 0.4 * len(groups)))
    axes = look.new_axes(
        figure, TITLE, left=142 if named else 72, top=34 if named else 58, grid="x"
    )
    _draw(axes, bars, named=named)
    axes.set_xlabel("completions")
    if not named:
        look.legend(axes, len(groups))
        axes.set_ylabel("variant")
    alt = f"{TITLE}: " + "; ".join(
        f"{group.kernels}, {count(group.distinct, 'variant')}, most common {group.most_common}"
        for group in groups
    )
    return look.finish(figure, f"{prefix}variants", alt, CAPTION)


def _bars_of(group: Group, room: int) -> Iterator[_Bar]:
    """At most `room` bars: the most common variants, then one for all the others."""
    shown = group.distinct if group.distinct <= room else room - 1
    for variant in group.variants[:shown]:
        yield _Bar(group.kernels, str(variant.rank), variant.count, gathered=False)
    if hidden := group.variants[shown:]:
        completions = sum(variant.count for variant in hidden)
        yield _Bar(group.kernels, f"{len(hidden):,} more", completions, gathered=True)


def _draw(axes: Axes, bars: Sequence[_Bar], *, named: bool) -> None:
    """The bars with their numbers; if `named`, the first of each setting carries its name."""
    places = _places(bars)
    labelled: set[str] = set()
    for place, bar in zip(places, bars, strict=True):
        label = None if bar.kernels in labelled else bar.kernels
        labelled.add(bar.kernels)
        axes.barh(
            place, bar.completions, 0.68, color=look.kernels_colour(bar.kernels), linewidth=0,
            alpha=0.45 if bar.gathered else 1.0, label=label,
        )  # fmt: skip
        look.note(axes, f"{bar.completions:,}", (bar.completions, place), (4, 0), ha="left")
    before = ["", *(bar.kernels for bar in bars)]
    names = [
        f"{clip(short_kernels(bar.kernels), 16)}  {bar.name}"
        if named and bar.kernels != last
        else bar.name
        for bar, last in zip(bars, before, strict=False)
    ]
    axes.set_yticks(places, names)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(0, 1.14 * max(bar.completions for bar in bars))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _places(bars: Sequence[_Bar]) -> list[float]:
    """The heights of the bars: a row each, and a little room between kernels settings."""
    settings = list(dict.fromkeys(bar.kernels for bar in bars))
    return [place + 0.4 * settings.index(bar.kernels) for place, bar in enumerate(bars)]
