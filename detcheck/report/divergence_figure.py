"""Where answers leave the reference, and how close the two best tokens were at each branching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from detcheck.analysis.results import FLIP_KINDS, Branching, Group
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.text import of_kind, short_kernels
from detcheck.text import count

TITLE = "Where they diverge, and how close the choice was"
HEIGHT = 430.0
LEFT, RIGHT, BOTTOM = 58.0, 16.0, 44.0
CURVE_TOP, CURVE_HEIGHT = 58.0, 122.0
DOTS_HEIGHT = 140.0
CURVE_CAPTION = "{} many completions still equal the reference after so many {}s."
OMITTED_CAPTION = "Settings without a line never leave it."
DOTS_CAPTION = (
    "Bottom: each dot is a branching, at which completions that agreed so far go on in two ways; "
    "the more completions, the larger. Its height is the gap between the two best tokens: the "
    "difference of their log-probabilities, in nats. 0 is a tie."
)
NOISE_CAPTION = "Rounding can turn a gap over up to the measured noise (grey); no gap beyond it."


def divergences(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Share of completions that follow the reference, above the gap at every branching.

    Without log-probabilities the lower panel is left out. None if nothing diverged.
    """
    branchings = [branching for group in groups for branching in group.branchings]
    if not branchings:
        return None
    known = [branching for branching in branchings if branching.flip.gap is not None]
    noise = max((group.noise for group in groups if group.noise is not None), default=None)
    figure = look.new_figure(height=HEIGHT if known else HEIGHT - DOTS_HEIGHT - 48)
    last = max(branching.position for branching in branchings)
    curve = _panel(figure, CURVE_TOP, CURVE_HEIGHT, last)
    _draw_curve(curve, groups, last)
    bottom = curve
    if known:
        bottom = _panel(figure, CURVE_TOP + CURVE_HEIGHT + 62, DOTS_HEIGHT, last)
        _draw_dots(bottom, known, noise)
    unit = groups[0].unit
    bottom.set_xlabel(f"{unit} of the completion")
    alt = f"{TITLE}: " + "; ".join(_in_words(group) for group in groups)
    sentences = [CURVE_CAPTION.format("Top: how" if known else "How", unit)]
    if len(groups) > look.MAX_LEGEND:
        sentences.append(OMITTED_CAPTION)
    if known:
        sentences.append(DOTS_CAPTION)
    if known and noise:
        sentences.append(NOISE_CAPTION)
    return look.finish(figure, f"{prefix}divergences", alt, " ".join(sentences))


def _panel(figure: Figure, top: float, height: float, last: int) -> Axes:
    """Axes at `top` CSS pixels from the top, over the positions up to `last`."""
    full_width, full_height = figure.get_size_inches() * 72
    box = (LEFT / full_width, 1 - (top + height) / full_height)
    axes: Axes = figure.add_axes((*box, 1 - (LEFT + RIGHT) / full_width, height / full_height))
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-0.03 * max(last, 5), 1.06 * max(last, 5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if top == CURVE_TOP:
        look.title_of(figure, TITLE)
    return axes


def _draw_curve(axes: Axes, groups: Sequence[Group], last: int) -> None:
    """Steps down from 100 %, one line for each kernels setting.

    If they are too many for a legend, only those that diverge.
    """
    shown = [group for group in groups if group.completions]
    if len(shown) > look.MAX_LEGEND:
        shown = [group for group in shown if group.divergences]
    for group in shown:
        left = Counter[int]()
        for divergence in group.divergences:
            left[divergence.position] += divergence.count
        positions = sorted(left)
        gone = np.cumsum([0, *(left[position] for position in positions)])
        shares = 100 * (1 - gone / group.completions)
        axes.step(
            [0, *positions, 1.06 * max(last, 5)], [*shares, shares[-1]], where="post",
            color=look.kernels_colour(group.kernels), linewidth=2,
            label=short_kernels(group.kernels),
        )  # fmt: skip
    axes.set_ylim(-4, 108)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("equal so far, %")
    look.legend(axes, min(len(shown), look.MAX_LEGEND))


def _draw_dots(axes: Axes, known: Sequence[Branching], noise: float | None) -> None:
    """A dot for each branching whose gap is known, over a band of the measured noise."""
    top = max([branching.flip.gap or 0.0 for branching in known] + [noise or 0.0]) or 1.0
    if noise:
        axes.axhspan(0, noise, color=look.NEUTRAL, alpha=0.16, linewidth=0)
        axes.annotate(
            "measured noise", (1, noise), (-4, -3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", va="top", color=look.MUTED,
            fontsize=look.FONT_SIZE - 1,
        )  # fmt: skip
    for kind in FLIP_KINDS:
        found = [branching for branching in known if branching.flip.kind == kind]
        if found:
            completions = np.array([branching.completions for branching in found], dtype=float)
            axes.scatter(
                [branching.position for branching in found],
                [branching.flip.gap or 0.0 for branching in found],
                s=24 + 14 * np.sqrt(completions), color=look.FLIP_COLOURS[kind], alpha=0.8,
                edgecolor=look.PAPER, linewidth=0.8, label=of_kind(len(found), kind),
            )  # fmt: skip
    axes.set_ylim(-0.14 * top, 1.16 * top)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_ylabel("gap, nats")
    look.legend(axes, 4, size=30)


def _in_words(group: Group) -> str:
    first = group.first_divergence
    if first is None:
        return f"{group.kernels}, none"
    return (
        f"{group.kernels}, {count(len(group.branchings), 'branching')}, the first at "
        f"{group.unit} {first}"
    )
