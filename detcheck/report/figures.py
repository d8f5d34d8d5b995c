"""The charts of a report: one function a figure, each from an analysis alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from detcheck.analysis.results import FLIP_KINDS, Analysis, BatchSizeRow, Divergence, Group
from detcheck.kernels.settings import STOCK
from detcheck.report import figure_style as look
from detcheck.report.cost_figure import cost_beside_benefit
from detcheck.report.figure_style import Drawing
from detcheck.report.text import clip
from detcheck.report.tree_figure import prefix_tree
from detcheck.text import count

LOG_SPAN = 30
"""Counts that span more than this factor are shown on a logarithmic scale."""
MAX_CONDITIONS = 16
"""Conditions in an agreement matrix, beyond which its cells are too small to read."""
MAX_PROMPTS = 8
"""Prompts that get figures of their own; the tables have them all."""


def draw_all(analysis: Analysis) -> dict[int, list[Drawing]]:
    """Every figure by prompt index, each drawn once; prompts beyond MAX_PROMPTS get none."""
    prompts = list(dict.fromkeys(group.prompt_index for group in analysis.groups))
    with look.style():
        return {
            # Names stay short and stable for the first prompt, which is often the only one.
            prompt_index: _draw_prompt(analysis, prompt_index, f"prompt{rank}_" if rank > 1 else "")
            for rank, prompt_index in enumerate(prompts[:MAX_PROMPTS], start=1)
        }


def _draw_prompt(analysis: Analysis, prompt_index: int, prefix: str) -> list[Drawing]:
    groups = [group for group in analysis.groups if group.prompt_index == prompt_index]
    drawings = [
        prefix_tree(most_varied(groups), analysis.run.experiment.temperature, prefix),
        variants_by_rank(groups, prefix),
        divergences(groups, prefix),
        distinct_by_batch_size(groups, prefix),
        cost_beside_benefit(groups, prefix),
        agreement(analysis, prompt_index, prefix),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def most_varied(groups: Sequence[Group]) -> Group:
    """The group whose tree is worth seeing: the one with most variants, stock on a draw."""
    return max(groups, key=lambda group: group.distinct)


def variants_by_rank(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """How often each variant came back, most common first, one colour a kernels setting."""
    groups = [group for group in groups if group.variants]
    if not groups:
        return None
    title = "Completions of each variant"
    figure = look.new_figure()
    axes = look.new_axes(figure, title)
    counts = [np.array([variant.count for variant in group.variants]) for group in groups]
    low, high = min(c.min() for c in counts), max(c.max() for c in counts)
    log = high > LOG_SPAN * low
    floor = 0.7 if log else 0.0
    apart = min(0.22, 0.04 * max(map(len, counts)))
    for index, (group, values) in enumerate(zip(groups, counts, strict=True)):
        ranks = np.arange(1, len(values) + 1) + (index - (len(groups) - 1) / 2) * apart
        colour = look.kernels_colour(group.kernels)
        axes.vlines(ranks, floor, values, color=colour, linewidth=1.2)
        axes.plot(ranks, values, "o", color=colour, markersize=4.5, label=_counted(group))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if log:
        _log_scale(axes)
    axes.set_ylim(floor, high * (1.6 if log else 1.12))
    axes.set_xlim(0.3, max(map(len, counts)) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    look.legend(axes, len(groups))
    axes.set_xlabel("variants, most common first")
    alt = f"{title}: " + "; ".join(
        f"{group.kernels}, {count(group.distinct, 'variant')}, most common {group.most_common}"
        for group in groups
    )
    return look.finish(figure, f"{prefix}variants", alt)


def divergences(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Where variants leave the reference: token against gap, size by count, colour by flip."""
    found = [divergence for group in groups for divergence in group.divergences]
    if not found:
        return None
    noise = max((group.noise for group in groups if group.noise is not None), default=None)
    title = "Where they part, and how close the call was"
    figure = look.new_figure()
    axes = look.new_axes(figure, title, left=52)
    top = max([d.flip.gap or 0.0 for d in found] + [noise or 0.0]) or 1.0
    if noise:
        _noise_band(axes, noise)
    for kind in FLIP_KINDS:
        _flip_dots(axes, kind, [d for d in found if d.flip.kind == kind])
    axes.set_ylim(-0.08 * top, 1.18 * top)
    _position_axis(axes, groups, max(d.position for d in found))
    look.legend(axes, 4, size=30)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_ylabel("gap of the two best tokens (nats)")
    alt = f"{title}: " + ", ".join(
        f"{groups[0].unit} {position} ({count(total, 'completion')})"
        for position, total in _by_position(groups).most_common(8)
    )
    return look.finish(figure, f"{prefix}divergences", alt)


def distinct_by_batch_size(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Variants at each batch size, kernels settings side by side."""
    groups = [group for group in groups if group.by_batch_size]
    if not groups:
        return None
    rows = dict.fromkeys(_cell(row) for group in groups for row in group.by_batch_size)
    cells = sorted(rows, key=lambda cell: cell[0])
    title = "Distinct answers by batch size"
    figure = look.new_figure()
    axes = look.new_axes(figure, title, bottom=56)
    width = 0.72 / len(groups)
    for index, group in enumerate(groups):
        _bars(axes, group, cells, (index - (len(groups) - 1) / 2) * width, width)
    asked = {_cell(row): row.completions for row in groups[0].by_batch_size}
    labels = [
        f"{size}{_at(placement)}\nof {asked.get((size, placement), 0):,}"
        for size, placement in cells
    ]
    axes.set_xticks(range(len(cells)), labels)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(y=0.15)
    look.legend(axes, len(groups))
    axes.set_xlabel("batch size, and how many completions")
    alt = f"{title}: " + "; ".join(_rows_in_words(group) for group in groups)
    return look.finish(figure, f"{prefix}distinct_by_batch_size", alt)


def agreement(analysis: Analysis, prompt_index: int, prefix: str = "") -> Drawing | None:
    """Chance that a completion of one condition equals one of another, as a heat map."""
    records = analysis.run.conditions
    chosen = [i for i, record in enumerate(records) if record.prompt_index == prompt_index]
    chosen.sort(key=lambda i: (records[i].kernels != STOCK, records[i].kernels))
    if not 1 < len(chosen) <= MAX_CONDITIONS:
        return None
    matrix = analysis.agreement[np.ix_(chosen, chosen)]
    names = [
        f"{_short(records[i].kernels)} b{records[i].batch_size}{_at(records[i].placement)}"
        for i in chosen
    ]
    title = "Agreement between conditions, in %"
    figure = look.new_figure(height=look.HEIGHT + 50)
    axes = look.new_axes(figure, title, left=112, bottom=72, grid="both")
    axes.grid(visible=False)
    _heat_cells(axes, matrix)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    alt = f"{title}: chance that a completion of one equals one of the other"
    return look.finish(figure, f"{prefix}agreement", alt)


def _heat_cells(axes: Axes, matrix: npt.NDArray[np.float64]) -> None:
    """One rectangle a cell: opacity carries the value, so that it reads in light and dark."""
    for row, column in np.ndindex(*matrix.shape):
        value = float(matrix[row, column])
        if np.isnan(value):
            continue
        corner = (column - 0.47, row - 0.47)
        alpha = 0.06 + 0.55 * value
        axes.add_patch(
            Rectangle(corner, 0.94, 0.94, color=look.INVARIANT_COLOUR, alpha=alpha, linewidth=0)
        )
        if len(matrix) <= 12:
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=9)


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _noise_band(axes: Axes, noise: float) -> None:
    """Gaps up to the measured noise, which rounding can turn over."""
    axes.axhspan(0, noise, color=look.NEUTRAL, alpha=0.16, linewidth=0)
    axes.annotate(
        "measured noise", (1, noise), (-4, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="bottom", color=look.MUTED,
        fontsize=look.FONT_SIZE - 1,
    )  # fmt: skip


def _flip_dots(axes: Axes, kind: str, found: Sequence[Divergence]) -> None:
    """One dot a place and gap; its area grows with the root of its completions."""
    points: Counter[tuple[int, float]] = Counter()
    for divergence in found:
        points[divergence.position, divergence.flip.gap or 0.0] += divergence.count
    if not points:
        return
    x, y = np.array(list(points)).T
    sizes = 35 + 22 * np.sqrt(np.array(list(points.values()), dtype=float))
    axes.scatter(
        x, y, s=sizes, color=look.FLIP_COLOURS[kind], alpha=0.85, edgecolor=look.PAPER,
        linewidth=0.8, label=f"{kind} ({points.total():,})",
    )  # fmt: skip


def _cell(row: BatchSizeRow) -> tuple[int, str]:
    return row.batch_size, row.placement


def _at(placement: str) -> str:
    """A placement beside a batch size, short: ` e2`, ` tp3`."""
    return f" {placement.replace('endpoint ', 'e')}" if placement else ""


def _bars(
    axes: Axes, group: Group, cells: Sequence[tuple[int, str]], offset: float, width: float
) -> None:
    """The variants of one kernels setting at each batch size, with their numbers."""
    rows = {_cell(row): row for row in group.by_batch_size}
    places = [place + offset for place, cell in enumerate(cells) if cell in rows]
    values = [rows[cell].distinct for cell in cells if cell in rows]
    colour = look.kernels_colour(group.kernels)
    bars = axes.bar(places, values, width * 0.92, color=colour, label=_counted(group))
    axes.bar_label(bars, padding=2, fontsize=look.FONT_SIZE - 1, color=look.INK)


def _position_axis(axes: Axes, groups: Sequence[Group], last: int) -> None:
    axes.set_xlim(-0.04 * max(last, 5), 1.08 * max(last, 5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel(f"{groups[0].unit} at which they leave the reference")


def _counted(group: Group) -> str:
    return f"{group.kernels}: {group.distinct:,} distinct"


def _short(kernels: str) -> str:
    return clip(kernels.replace("batch-invariant", "invariant"), 18)


def _rows_in_words(group: Group) -> str:
    rows = ", ".join(
        f"{row.distinct} at {row.batch_size}{_at(row.placement)}" for row in group.by_batch_size
    )
    return f"{group.kernels}, {rows}"


def _by_position(groups: Sequence[Group]) -> Counter[int]:
    totals: Counter[int] = Counter()
    for group in groups:
        for divergence in group.divergences:
            totals[divergence.position] += divergence.count
    return totals
