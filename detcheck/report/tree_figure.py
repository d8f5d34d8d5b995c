"""The prefix tree as a picture: the text that all share, then a band for each branch.

The more completions take a branch, the wider its band.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from detcheck.analysis.results import Group
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.prefix_tree import BRANCH, Branch, TreeLimits, branches, prune
from detcheck.report.text import cell_width, clip, tail
from detcheck.text import count, one_line

WIDTH = 960.0
MARGIN = 20.0
TRUNK_WIDTH = 176.0
HEADING = 46.0
ROW = 25.0
"""Height of a row that holds a thin branch and its words."""
BAND_HEIGHT = 130.0
"""Height of all completions together."""
INSIDE = 19.0
"""Branches at least this thick carry their words inside, the others above."""
FONT = 13.0
CELL = 0.54 * FONT
"""Mean width of a character."""
LIMITS = TreeLimits(leaves=12, depth=4, children=7)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """The columns, and the thickness of a completion, in CSS pixels; y grows downwards."""

    total: int
    columns: int

    @property
    def column_width(self) -> float:
        """All columns have this width, but the last is half as wide again: its words need room."""
        return (WIDTH - 2 * MARGIN - TRUNK_WIDTH) / (max(self.columns, 1) + 0.5)

    @property
    def curve(self) -> float:
        """Horizontal room in which a branch swings out."""
        return min(40.0, self.column_width * 0.28)

    def left(self, depth: int) -> float:
        if depth == 0:
            return MARGIN
        return MARGIN + TRUNK_WIDTH + (depth - 1) * self.column_width + self.curve

    def right(self, branch: Branch) -> float:
        """The x coordinate at which a branch divides, or the margin if it does not."""
        if not branch.children:
            return WIDTH - MARGIN
        if branch.depth == 0:
            return MARGIN + TRUNK_WIDTH
        return self.left(branch.depth) + self.column_width - self.curve

    def thickness(self, completions: int) -> float:
        return max(1.6, BAND_HEIGHT * completions / self.total)


def prefix_tree(group: Group, temperature: float, prefix: str = "") -> Drawing | None:
    """The prefix tree of a group's variants; None if no completion came back."""
    whole = branches(group)
    if whole is None:
        return None
    root = prune(whole, LIMITS)
    geometry = _Geometry(root.count, max(branch.depth for branch in root.walk()))
    centres, bottom = _place(root, geometry)
    figure = look.new_figure(WIDTH, bottom + MARGIN)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(bottom + MARGIN, 0))
    axes.set_axis_off()
    _heading(figure, group, temperature, bottom + MARGIN)
    painter = _Painter(axes, geometry, centres)
    painter.paint(root)
    painter.trunk(root)
    return look.finish(figure, f"{prefix}prefix_tree", _in_words(root))


def _place(root: Branch, geometry: _Geometry) -> tuple[dict[int, float], float]:
    """The centre line of every branch by identity, and the lower end of the lowest one."""
    centres: dict[int, float] = {}
    y = HEADING
    for leaf in root.leaves():
        thickness = geometry.thickness(leaf.count)
        height = thickness + 9 if thickness >= INSIDE else max(ROW, thickness + FONT + 9)
        # A thin branch lies at the foot of its row, below its words.
        centres[id(leaf)] = y + height - 4 - thickness / 2
        y += height

    def settle(branch: Branch) -> float:
        if branch.children:
            ys = [settle(child) for child in branch.children]
            weights = [child.count for child in branch.children]
            centres[id(branch)] = sum(map(float.__mul__, ys, map(float, weights))) / sum(weights)
        return centres[id(branch)]

    middle = settle(root)
    half = geometry.thickness(root.count) / 2
    shift = max(0.0, HEADING - (middle - half))
    if shift:
        centres = {key: value + shift for key, value in centres.items()}
    return centres, max(y + shift, middle + shift + half)


class _Painter:
    """Draws branches onto axes whose data are CSS pixels."""

    def __init__(self, axes: Axes, geometry: _Geometry, centres: dict[int, float]):
        self.axes = axes
        self.geometry = geometry
        self.centres = centres

    def paint(self, branch: Branch) -> None:
        """The band of `branch`, its words, then its children from top to bottom."""
        centre = self.centres[id(branch)]
        thickness = self.geometry.thickness(branch.count)
        self._band(branch, centre - thickness / 2, thickness)
        if branch.depth > 0:
            self._words(branch, centre, thickness)
        offset = centre - thickness / 2
        for child in branch.children:
            share = thickness * child.count / branch.count
            self._swing(branch, child, offset, share)
            offset += share
            self.paint(child)

    def trunk(self, root: Branch) -> None:
        """The end of the text that all share, inside the trunk."""
        width, most = (23, 84) if root.children else (118, 480)
        lines = textwrap.wrap(tail(root.text, most), width, max_lines=5) or ["(nothing shared)"]
        y = self.centres[id(root)] - (len(lines) - 1) * FONT * 0.65
        for line in lines:
            self._text(MARGIN + 12, y, line, look.INK, FONT)
            y += FONT * 1.3

    def _band(self, branch: Branch, top: float, thickness: float) -> None:
        left, right = self.geometry.left(branch.depth), self.geometry.right(branch)
        colour, alpha = _paint_of(branch)
        self.axes.add_patch(
            Rectangle((left, top), right - left, thickness, color=colour, alpha=alpha, lw=0)
        )
        if branch.depth > 0:
            self.axes.add_patch(Rectangle((left, top), 3.5, thickness, color=colour, lw=0))

    def _swing(self, parent: Branch, child: Branch, top: float, share: float) -> None:
        """The curve from the parent's right edge to the child's left edge."""
        x0, x1 = self.geometry.right(parent), self.geometry.left(child.depth)
        thickness = self.geometry.thickness(child.count)
        y1 = self.centres[id(child)] - thickness / 2
        middle = (x0 + x1) / 2
        points = [
            (x0, top), (middle, top), (middle, y1), (x1, y1),
            (x1, y1 + thickness),
            (middle, y1 + thickness), (middle, top + share), (x0, top + share), (x0, top),
        ]  # fmt: skip
        curve = [Path.CURVE4] * 3
        codes = [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY]
        colour, alpha = _paint_of(child)
        patch = PathPatch(
            Path(points, codes), facecolor=colour, alpha=alpha, edgecolor="none", lw=0
        )
        self.axes.add_patch(patch)

    def _words(self, branch: Branch, centre: float, thickness: float) -> None:
        """Count, then words: inside a thick branch, above a thin one."""
        y = centre if thickness >= INSIDE else centre - thickness / 2 - 4 - FONT * 0.36
        x = self.geometry.left(branch.depth) + 10
        colour = look.INK if branch.on_reference else look.STOCK_COLOUR
        digits = f"{branch.count:,}"
        self._text(x, y, digits, colour, FONT, weight="bold")
        x += CELL * (len(digits) + 1) + 4
        ink = look.INK if branch.kind == BRANCH else look.MUTED
        lines = self._lines(branch, self.geometry.right(branch) - x, thickness)
        for line in lines:
            self._text(x, y, line, ink, FONT)
            y += FONT * 1.3

    def _lines(self, branch: Branch, room: float, thickness: float) -> list[str]:
        """The words that fit: two lines if the branch is thick enough for them."""
        cells = int(room / CELL)
        more = f" · {count(branch.variants, 'answer')}" if branch.collapsed else ""
        label = branch.label.strip()
        if thickness < 2 * INSIDE or cell_width(label) + len(more) <= cells:
            return [clip(label, max(4, cells - len(more))) + more]
        first, *rest = textwrap.wrap(one_line(label[:400]), cells) or [""]
        return [first, *([clip(" ".join(rest), cells)] if rest else [])]

    def _text(
        self, x: float, y: float, text: str, colour: str, size: float,
        *, weight: str = "normal", ha: str = "left",
    ) -> None:  # fmt: skip
        self.axes.text(
            x, y, text, color=colour, fontsize=size, weight=weight, ha=ha, va="center_baseline"
        )


def _paint_of(branch: Branch) -> tuple[str, float]:
    return (look.NEUTRAL, 0.26) if branch.on_reference else (look.STOCK_COLOUR, 0.24)


def _heading(figure: Figure, group: Group, temperature: float, height: float) -> None:
    """One line above the tree: the prompt, the counts and the setting."""
    counts = f"{count(group.completions, 'completion')}, {count(group.distinct, 'distinct answer')}"
    setting = f"{group.kernels} kernels, temperature {temperature:g}; grey: the reference"
    room = int((WIDTH - 2 * MARGIN) / CELL) - cell_width(counts) - cell_width(setting) - 8
    prompt = f"“{clip(group.prompt, max(20, room))}”"
    y = 1 - 24 / height
    left = MARGIN / WIDTH
    figure.text(left, y, f"{prompt}  {counts}", color=look.INK, weight="bold", fontsize=FONT)
    figure.text(1 - left, y, setting, color=look.MUTED, ha="right", fontsize=FONT - 1)


def _in_words(root: Branch) -> str:
    parts = [f"{clip(child.label, 40)} {child.count}" for child in root.children]
    if not parts:
        if root.count == 1:
            return "The only completion gave one answer."
        return f"All {root.count:,} completions gave one answer."
    return f"After “{tail(root.text, 60)}” the completions diverge: " + "; ".join(parts)
