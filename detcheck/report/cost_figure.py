"""The benefit of a kernels setting beside its cost: a row for each setting, two panels."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from detcheck.analysis.results import Group
from detcheck.kernels.settings import STOCK
from detcheck.report import figure_style as look
from detcheck.report.costs import Cost, cost_range, group_cost
from detcheck.report.figure_style import Drawing
from detcheck.report.text import clip, short_kernels
from detcheck.text import count

TITLE = "What each setting brings, and what it costs"
ROW_HEIGHT = 46.0
TOP, BOTTOM = 66.0, 46.0
NAMES, GAP, RIGHT = 112.0, 22.0, 16.0
"""Room for the names of the settings, between the panels, and right of them, in CSS pixels."""
ANSWERS_SHARE = 0.36
"""Of the width of both panels, that of the answers."""

Row = tuple[Group, Cost | None]
"""A kernels setting, and its cost; None for stock, which costs 1 by definition."""


def cost_beside_benefit(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Distinct answers and time per token of every kernels setting that was timed against stock.

    None without stock, or if nothing was timed.
    """
    stock = [group for group in groups if group.kernels == STOCK]
    costs = [(group, group_cost(group)) for group in groups if group.kernels != STOCK]
    timed = [(group, cost) for group, cost in costs if cost is not None]
    if not stock or not timed:
        return None
    rows: list[Row] = [(stock[0], None), *timed]
    figure = look.new_figure(height=TOP + BOTTOM + ROW_HEIGHT * len(rows))
    answers, times = _panels(figure, len(rows))
    _draw_answers(answers, rows)
    _draw_times(times, rows)
    alt = f"{TITLE}: " + "; ".join(_in_words(group, cost) for group, cost in rows)
    caption = (
        "Left: fewer answers are better. Right: left of 1× is faster than stock, right of it "
        "slower. The dot is the cost of all batch sizes together; the line reaches from the lowest "
        "to the highest cost of a single batch size."
    )
    return look.finish(figure, f"{prefix}cost_beside_benefit", alt, caption)


def _panels(figure: Figure, num_rows: int) -> tuple[Axes, Axes]:
    """Axes for the answers and for the times, with a row for each setting."""
    width, height = figure.get_size_inches() * 72
    room = width - NAMES - GAP - RIGHT
    bottom, tall = BOTTOM / height, 1 - (BOTTOM + TOP) / height
    answers_width = room * ANSWERS_SHARE
    answers: Axes = figure.add_axes((NAMES / width, bottom, answers_width / width, tall))
    left = NAMES + answers_width + GAP
    times: Axes = figure.add_axes((left / width, bottom, (width - RIGHT - left) / width, tall))
    look.title_of(figure, TITLE)
    for axes in (answers, times):
        axes.set_ylim(num_rows - 0.5, -0.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    return answers, times


def _draw_answers(axes: Axes, rows: Sequence[Row]) -> None:
    """One bar for each setting, its name left of it and its number right of it."""
    for place, (group, _) in enumerate(rows):
        colour = look.kernels_colour(group.kernels)
        distinct = group.distinct_within_seed
        axes.barh(place, distinct, 0.5, color=colour, linewidth=0)
        look.note(axes, f"{distinct:,}", (distinct, place), (5, 0), ha="left")
        name = clip(short_kernels(group.kernels), 16)
        look.note(axes, name, (0, place), (-6, 0), ha="right", color=look.INK)
    most = max(group.distinct_within_seed for group, _ in rows)
    seeds = next((group.sample for group, _ in rows if len(group.by_seed) > 1), "")
    axes.set_xlim(0, 1.35 * most)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel(f"answers to one {seeds}" if seeds else "distinct answers")


def _draw_times(axes: Axes, rows: Sequence[Row]) -> None:
    """Time per token against stock: a dot, and a line from the lowest to the highest."""
    known = [cost for _, cost in rows if cost is not None]
    low, high = min(1.0, *(cost.low for cost in known)), max(1.0, *(cost.high for cost in known))
    span = max(high - low, 0.1)
    axes.set_xlim(low - 0.14 * span, high + 0.14 * span)
    axes.axvline(1.0, color=look.NEUTRAL, linewidth=1.2)
    for place, (group, cost) in enumerate(rows):
        colour = look.kernels_colour(group.kernels)
        if cost is not None:
            axes.plot([cost.low, cost.high], [place, place], color=colour, linewidth=3, alpha=0.45)
        mean = 1.0 if cost is None else cost.mean
        axes.plot(mean, place, "o", color=colour, markersize=8)
        label = "1×, by definition" if cost is None else cost_range(cost)
        left = mean <= low + 0.45 * span
        at = mean if left or cost is None else cost.high  # clear of the line at 1×
        look.note(axes, label, (at, place), (0, 9), ha="left" if left else "right", va="bottom")
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}×"))
    axes.set_xlabel("time per token against stock")


def _in_words(group: Group, cost: Cost | None) -> str:
    answers = f"{group.kernels}, {count(group.distinct_within_seed, 'answer')}"
    return answers if cost is None else f"{answers} at {cost_range(cost)} the time per token"
