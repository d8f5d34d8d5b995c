"""How answers depend on the load: their number by batch size, and which conditions agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from detcheck.analysis.results import Analysis, BatchSizeRow, Group
from detcheck.kernels.settings import STOCK
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.text import clip, short_kernels

MAX_NUMBERED = 12
"""Conditions in an agreement matrix; with more, its cells have no numbers."""
MAX_CONDITIONS = 16
"""Conditions in an agreement matrix; with more, its cells are too small to read."""
BATCH_TITLE = "Distinct answers by batch size"
SAMPLE_TITLE = "Distinct answers to one {sample}, by batch size"
AGREEMENT_TITLE = "Agreement between conditions, in %"
AGREEMENT_CAPTION = (
    "Each cell compares two conditions, named by kernels and batch size (b8: 8 requests in flight "
    "together): how often a completion of the one equals a completion of the other. On the "
    "diagonal, two different completions of the same condition are compared. If the load made no "
    "difference, every cell between conditions of the same kernels would be 100. Two kernels "
    "settings may give different answers: a 0 between them is no fault."
)


def distinct_by_batch_size(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """Distinct answers at each batch size, kernels settings side by side; None without rows.

    With several seeds, the most answers to one of them. Many settings are rows of a grid.
    """
    groups = [group for group in groups if group.by_batch_size]
    if not groups:
        return None
    if len(groups) > look.MAX_LEGEND:
        return _settings_by_batch_size(groups, prefix)
    cells = _cells_of(groups)
    several = any(len(group.by_seed) > 1 for group in groups)
    title = SAMPLE_TITLE.format(sample=groups[0].sample) if several else BATCH_TITLE
    figure = look.new_figure()
    axes = look.new_axes(figure, title, left=56, bottom=56)
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
    axes.set_ylabel("distinct answers")
    alt = f"{title}: " + "; ".join(_rows_in_words(group) for group in groups)
    return look.finish(figure, f"{prefix}distinct_by_batch_size", alt)


def _settings_by_batch_size(groups: Sequence[Group], prefix: str) -> Drawing:
    """Kernels settings by batch sizes: the more answers, the darker."""
    cells = _cells_of(groups)
    figure = look.new_figure(height=58 + 46 + 24.0 * len(groups))
    axes = look.new_axes(figure, BATCH_TITLE, left=118, bottom=46, top=40, grid="both")
    axes.grid(visible=False)
    most = max(row.distinct_within_seed for group in groups for row in group.by_batch_size)
    for place, group in enumerate(groups):
        colour = look.kernels_colour(group.kernels)
        for row in group.by_batch_size:
            column, distinct = cells.index(_cell(row)), row.distinct_within_seed
            share = (distinct - 1) / (most - 1) if most > 1 else 0.0
            _tile(axes, (column, place), str(distinct), colour, share)
    axes.set_xticks(range(len(cells)), [f"{size}{_at(placement)}" for size, placement in cells])
    axes.set_yticks(range(len(groups)), [_short(group.kernels) for group in groups])
    _fit_tiles(axes, len(cells), len(groups))
    axes.set_xlabel("batch size")
    alt = f"{BATCH_TITLE}: " + "; ".join(_rows_in_words(group) for group in groups)
    return look.finish(figure, f"{prefix}distinct_by_batch_size", alt)


def agreement(analysis: Analysis, prompt_index: int, prefix: str = "") -> Drawing | None:
    """Chance that a completion of one condition equals one of another, as a heat map.

    None with a single condition, or with more than MAX_CONDITIONS.
    """
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
    figure = look.new_figure(height=look.HEIGHT + 50)
    axes = look.new_axes(figure, AGREEMENT_TITLE, left=112, bottom=72, grid="both", top=34)
    axes.grid(visible=False)
    _heat_cells(axes, matrix)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    _fit_tiles(axes, len(names), len(names))
    alt = f"{AGREEMENT_TITLE}: chance that a completion of one equals one of the other"
    return look.finish(figure, f"{prefix}agreement", alt, AGREEMENT_CAPTION)


def _heat_cells(axes: Axes, matrix: npt.NDArray[np.float64]) -> None:
    """One tile for each cell of an agreement matrix; with many, without its number."""
    for row, column in np.ndindex(*matrix.shape):
        value = float(matrix[row, column])
        if not np.isnan(value):
            text = f"{100 * value:.0f}" if len(matrix) <= MAX_NUMBERED else ""
            _tile(axes, (column, row), text, look.INVARIANT_COLOUR, value)


def _tile(axes: Axes, place: tuple[int, int], text: str, colour: str, share: float) -> None:
    """A square with a number; opacity carries the share, to be read in light and in dark."""
    corner = (place[0] - 0.47, place[1] - 0.47)
    alpha = 0.06 + 0.55 * share
    axes.add_patch(Rectangle(corner, 0.94, 0.94, color=colour, alpha=alpha, linewidth=0))
    axes.text(*place, text, ha="center", va="center", fontsize=9)


def _fit_tiles(axes: Axes, columns: int, rows: int) -> None:
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.spines[:].set_visible(False)


def _cells_of(groups: Sequence[Group]) -> list[tuple[int, str]]:
    """(batch size, placement) of every row, smallest batch first."""
    rows = dict.fromkeys(_cell(row) for group in groups for row in group.by_batch_size)
    return sorted(rows, key=lambda cell: cell[0])


def _cell(row: BatchSizeRow) -> tuple[int, str]:
    return row.batch_size, row.placement


def _at(placement: str) -> str:
    """A placement beside a batch size, short: ` e2`, ` tp3`."""
    return f" {placement.replace('endpoint ', 'e')}" if placement else ""


def _bars(
    axes: Axes, group: Group, cells: Sequence[tuple[int, str]], offset: float, width: float
) -> None:
    """The bars of one kernels setting, with their numbers."""
    rows = {_cell(row): row for row in group.by_batch_size}
    places = [place + offset for place, cell in enumerate(cells) if cell in rows]
    values = [rows[cell].distinct_within_seed for cell in cells if cell in rows]
    colour = look.kernels_colour(group.kernels)
    label = f"{group.kernels}: {group.distinct_within_seed:,} distinct"
    bars = axes.bar(places, values, width * 0.92, color=colour, label=label)
    axes.bar_label(bars, padding=2, fontsize=look.FONT_SIZE - 1, color=look.INK)


def _short(kernels: str) -> str:
    return clip(short_kernels(kernels).replace("batch-invariant", "invariant"), 18)


def _rows_in_words(group: Group) -> str:
    rows = ", ".join(
        f"{row.distinct_within_seed} at {row.batch_size}{_at(row.placement)}"
        for row in group.by_batch_size
    )
    return f"{group.kernels}, {rows}"
