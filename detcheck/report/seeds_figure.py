"""Seeds by loads: how often the system gave a seed another answer than it asked for."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from detcheck.analysis.results import Group
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.seeds import SeedRow, SeedsView, seeds_view

TITLE = "Answers to each {sample}, by batch size"
CAPTION = (
    "Each row is a {sample}, which asks for one sample. A cell holds the number of different "
    "answers that the {sample} got at this batch size; it is dark if many completions left the "
    "answer that the {sample} gives under the smallest load. Without influence of the load, every "
    "number is 1 and no cell is dark."
)
MAX_ROWS = 24
"""Seeds that are drawn."""
MAX_SETTINGS = 3
ROW_HEIGHT = 20.0
LEFT, TOP, BOTTOM = 58.0, 58.0, 46.0


def seeds_by_load(groups: Sequence[Group], prefix: str = "") -> Drawing | None:
    """A panel for each kernels setting, a row for each seed; None if there is only one seed."""
    view = seeds_view(groups)
    if view is None:
        return None
    settings = list(dict.fromkeys(row.kernels for row in view.rows))[:MAX_SETTINGS]
    num_rows = min(MAX_ROWS, max(len(group.by_seed) for group in groups))
    figure = look.new_figure(height=TOP + BOTTOM + ROW_HEIGHT * num_rows)
    title = TITLE.format(sample=view.sample)
    look.title_of(figure, title)
    for index, kernels in enumerate(settings):
        rows = [row for row in view.rows if row.kernels == kernels][:MAX_ROWS]
        axes = _panel(figure, index, len(settings))
        _draw(axes, rows, look.kernels_colour(kernels))
        _label(axes, view, rows, kernels, first=index == 0)
    alt = f"{title}: " + "; ".join(f"{kernels}, {words}" for kernels, words in view.sentences)
    return look.finish(figure, f"{prefix}seeds", alt, CAPTION.format(sample=view.sample))


def _panel(figure: Figure, index: int, panels: int) -> Axes:
    width, height = figure.get_size_inches() * 72
    room = (width - LEFT - look.MARGIN) / panels
    box = ((LEFT + index * room) / width, BOTTOM / height)
    axes: Axes = figure.add_axes((*box, (room - 12) / width, 1 - (TOP + BOTTOM) / height))
    axes.spines[:].set_visible(False)
    return axes


def _draw(axes: Axes, rows: Sequence[SeedRow], colour: str) -> None:
    """One rectangle for each cell; opacity carries the share that left the seed's reference."""
    for place, row in enumerate(rows):
        for column, cell in enumerate(row.cells):
            if not cell.completions:
                continue
            alpha = 0.07 + 0.6 * cell.differ / cell.completions
            corner = (column - 0.46, place - 0.44)
            axes.add_patch(Rectangle(corner, 0.92, 0.88, color=colour, alpha=alpha, linewidth=0))
            axes.text(column, place, str(cell.distinct), ha="center", va="center", fontsize=9)


def _label(
    axes: Axes, view: SeedsView, rows: Sequence[SeedRow], kernels: str, *, first: bool
) -> None:
    axes.set_xlim(-0.5, len(view.batch_sizes) - 0.5)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xticks(range(len(view.batch_sizes)), map(str, view.batch_sizes))
    axes.set_yticks(range(len(rows)), [str(row.seed) for row in rows] if first else [])
    axes.set_title(kernels, loc="left", color=look.MUTED)
    axes.set_xlabel("batch size")
    if first:
        axes.set_ylabel(view.sample)
