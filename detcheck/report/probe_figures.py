"""Figures of `detcheck ops` and `detcheck trace`: the invariance matrix, and the growth.

They are drawn from the JSON that the commands print, so nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from detcheck.errors import UsageError
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.text import clip
from detcheck.text import quoted

OPS_FILE = "ops.json"
TRACE_FILE = "trace.json"
MATRIX = "invariance_matrix"
GROWTH = "growth"
RELATIONS = (
    *("repeat", "batch-size", "position", "neighbours", "layout"),
    *("padding", "chunking", "prefill-decode", "prefix-cache"),
)
"""The columns that the matrix always has; other relations that were probed follow."""
MATRIX_CAPTION = (
    "Each cell is an op and a relation: how many of the rows changed in any bit when only this "
    "changed around them. · means that none did; an empty cell was not probed."
)
GROWTH_CAPTION = (
    "At each layer: how far its result is from that under the other load, relative to its size. "
    "A small difference in the first op grows until it reaches the logits."
)
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)
_ROW_HEIGHT = 20
_PANEL = 196
_NAMES = 118

Cell = Mapping[str, Any]
Shares = dict[tuple[str, str], float]
"""(op, relation) to the largest share of rows that differ, over shapes and dtypes."""


def probe_drawings(folder: Path) -> list[Drawing]:
    """The figures of the probes whose results lie in `folder`; empty without such files.

    Raises UsageError if such a file is not what the commands write.
    """
    found = []
    for name, draw in ((OPS_FILE, _of_ops), (TRACE_FILE, _of_trace)):
        path = folder / name
        if path.is_file():
            try:
                drawing = draw(json.loads(path.read_text("utf-8")))
            except _MALFORMED as error:
                raise UsageError(
                    f"{path} is not what `detcheck {path.stem} --out` writes: make it again, or "
                    "remove it."
                ) from error
            found += [drawing] if drawing is not None else []
    return found


def _of_ops(data: Mapping[str, Any]) -> Drawing:
    return invariance_matrix(data["cells"])


def _of_trace(data: Mapping[str, Any]) -> Drawing | None:
    return growth(data["layers"], data["first"])


def invariance_matrix(cells: Sequence[Cell]) -> Drawing:
    """Ops by relations, one panel for each kernels setting: the worst share of rows that differ."""
    settings = list(dict.fromkeys(str(cell["kernels"]) for cell in cells))[:3]
    ops = list(dict.fromkeys(str(cell["op"]) for cell in cells))
    relations = list(dict.fromkeys([*RELATIONS, *(str(cell["relation"]) for cell in cells)]))
    if not ops:
        raise ValueError("no cells")
    width = _NAMES + _PANEL * len(settings) + look.MARGIN
    with look.style():
        figure = look.new_figure(width, 126 + _ROW_HEIGHT * len(ops))
        title = "Rows that differ, in % (the worst shape and dtype)"
        for index, kernels in enumerate(settings):
            axes = _panel(figure, title if index == 0 else "", index, len(settings), width)
            shares = _shares(cells, kernels)
            _fill(axes, ops, relations, shares, look.kernels_colour(kernels))
            axes.set_yticks(range(len(ops)), ops if index == 0 else [])
            axes.set_title(kernels, loc="left", color=look.MUTED)
        alt = f"{title}: " + "; ".join(_in_words(k, _shares(cells, k)) for k in settings)
        return look.finish(figure, MATRIX, alt, MATRIX_CAPTION)


def _panel(figure: Any, title: str, index: int, panels: int, width: float) -> Axes:
    height = figure.get_size_inches()[1] * 72
    left = (_NAMES + index * _PANEL) / width
    axes: Axes = look.new_axes(figure, title, left=_NAMES, bottom=84, grid="both")
    box = axes.get_position()
    axes.set_position((left, box.y0, (_PANEL - 12) / width, (height - 84 - 50) / height))
    axes.grid(visible=False)
    return axes


def _fill(
    axes: Axes, ops: Sequence[str], relations: Sequence[str], shares: Shares, colour: str
) -> None:
    """One rectangle for each cell; opacity carries the share, to be read in light and dark."""
    for row, op in enumerate(ops):
        for column, relation in enumerate(relations):
            share = shares.get((op, relation))
            if share is None:
                continue
            alpha = 0.25 + 0.5 * share if share else 0.06
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, color=colour, alpha=alpha, linewidth=0))
            text = "·" if not share else "<1" if share < 0.01 else f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9)
    axes.set_xlim(-0.5, len(relations) - 0.5)
    axes.set_ylim(len(ops) - 0.5, -0.5)
    axes.set_xticks(
        range(len(relations)), relations, rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.spines[:].set_visible(False)


def _shares(cells: Sequence[Cell], kernels: str) -> Shares:
    shares: Shares = {}
    for cell in cells:
        if cell["kernels"] == kernels and cell["rows"]:
            key = (str(cell["op"]), str(cell["relation"]))
            shares[key] = max(shares.get(key, 0.0), cell["rows_differ"] / cell["rows"])
    return shares


def _in_words(kernels: str, shares: Shares) -> str:
    broken = dict.fromkeys(op for (op, _), share in shares.items() if share)
    return f"{kernels}: {', '.join(broken) or 'no op'} differs"


def growth(layers: Sequence[Mapping[str, Any]], first: Mapping[str, Any] | None) -> Drawing | None:
    """The relative distance of each layer's result from the reference's; None without layers."""
    if not layers:
        return None
    values = [float(layer["relative"]) for layer in layers]
    with look.style():
        figure = look.new_figure()
        title = "How the difference grows"
        axes = look.new_axes(figure, title, left=62)
        shown = [value if value > 0 else float("nan") for value in values]
        axes.plot(range(len(values)), shown, "o-", color=look.STOCK_COLOUR, markersize=4)
        if any(value > 0 for value in values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("layer, at the token where the answers diverge")
        axes.set_ylabel("norm of the change / norm")
        alt = f"{title}: from {values[0]:.1e} after layer 0 to {values[-1]:.1e} after the last"
        if first is not None:
            op = str(first["op"])
            axes.set_title(f"first: {clip(op, 56)}", loc="left", color=look.MUTED)
            alt += (
                f"; first op that differs: {quoted(op, 100)} in {quoted(str(first['module']), 100)}"
            )
        return look.finish(figure, GROWTH, alt, GROWTH_CAPTION)
