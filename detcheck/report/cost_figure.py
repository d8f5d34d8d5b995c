"""What the cure costs beside what it brings: time a token against distinct answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from detcheck.analysis.results import BatchSizeRow, Group
from detcheck.kernels.settings import STOCK
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.text import number

Pair = tuple[Group, BatchSizeRow, BatchSizeRow]
"""A group that is not stock, the row of stock at a batch size, and the group's own there."""


def cost_beside_benefit(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Relative time a token against distinct answers: stock to each other setting, by batch."""
    stock = next((group for group in groups if group.kernels == STOCK), None)
    others = [group for group in groups if group.kernels != STOCK]
    pairs = [
        (group, base, row)
        for group in others
        for row in group.by_batch_size
        for base in (stock.by_batch_size if stock else ())
        if (base.batch_size, base.placement) == (row.batch_size, row.placement)
        and row.relative_cost is not None
    ]
    if not pairs or stock is None:
        return None
    title = "What it costs beside what it brings"
    figure = look.new_figure()
    axes = look.new_axes(figure, title, grid="both")
    for group in (stock, *others):
        colour = look.kernels_colour(group.kernels)
        axes.plot([], [], "o", color=colour, label=group.kernels)
    _scale(axes, pairs)
    for group, base, row in pairs:
        _cost_line(axes, group, base, row)
    _label_costs(axes, pairs)
    look.legend(axes, len(groups))
    axes.set_ylabel("distinct answers")
    axes.set_xlabel("time a token against stock, at each batch size")
    alt = f"{title}: " + "; ".join(
        f"{group.kernels} at batch size {row.batch_size}, {number(row.relative_cost)} times the "
        f"time, {base.distinct} answers become {row.distinct}"
        for group, base, row in pairs
    )
    return look.finish(figure, f"{prefix}cost_beside_benefit", alt)


def _scale(axes: Axes, pairs: Sequence[Pair]) -> None:
    """Limits and ticks, with room for the labels."""
    costs = [1.0, *(row.relative_cost or 1.0 for _, _, row in pairs)]
    span = max(max(costs) - min(costs), 0.1)
    axes.set_xlim(min(costs) - 0.18 * span, max(costs) + 0.18 * span)
    most = max(max(base.distinct, row.distinct) for _, base, row in pairs)
    axes.set_ylim(0, most * 1.15 + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}×"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _cost_line(axes: Axes, group: Group, base: BatchSizeRow, row: BatchSizeRow) -> None:
    """From stock at one batch size to the same with other kernels."""
    cost = row.relative_cost or 1.0
    axes.plot([1.0, cost], [base.distinct, row.distinct], color=look.NEUTRAL, lw=1, alpha=0.6)
    axes.plot(1.0, base.distinct, "o", color=look.STOCK_COLOUR, ms=6)
    axes.plot(cost, row.distinct, "o", color=look.kernels_colour(group.kernels), ms=6)


def _label_costs(axes: Axes, pairs: Sequence[Pair]) -> None:
    """The batch size left of each stock point and above each other, moved apart where they meet."""
    stock = sorted({(base.distinct, base.batch_size) for _, base, _ in pairs})
    heights = _spread([_pixels(axes, 1.0, y)[1] for y, _ in stock], 11)
    for (y, size), height in zip(stock, heights, strict=True):
        place = (-8.0, height - _pixels(axes, 1.0, y)[1])
        _offset_label(axes, f"{size}", (1.0, y), place, ha="right", va="center")
    for y in {row.distinct for _, _, row in pairs}:
        level = [
            (row.relative_cost or 1.0, row.batch_size) for *_, row in pairs if row.distinct == y
        ]
        _label_level(axes, y, sorted(level))


def _label_level(axes: Axes, y: int, level: Sequence[tuple[float, int]]) -> None:
    """Labels above the points of one height."""
    widths = _spread([_pixels(axes, x, y)[0] for x, _ in level], 13)
    for (x, size), width in zip(level, widths, strict=True):
        place = (width - _pixels(axes, x, y)[0], 7.0)
        _offset_label(axes, f"{size}", (x, y), place, ha="center", va="bottom")


def _offset_label(
    axes: Axes, text: str, point: tuple[float, float], place: tuple[float, float], **align: Any
) -> None:
    axes.annotate(
        text, point, place, textcoords="offset points", fontsize=look.FONT_SIZE - 1,
        color=look.MUTED, **align,
    )  # fmt: skip


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    px, py = axes.transData.transform((x, y))
    return float(px), float(py)


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising `places`, each pushed up until it is `gap` above the one before."""
    spread: list[float] = []
    for place in places:
        spread.append(max(place, spread[-1] + gap) if spread else place)
    return spread
