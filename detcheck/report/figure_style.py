"""One look for every figure, in light and in dark, and how a figure becomes SVG.

A figure is drawn once, in light colours. Its SVG carries style rules that swap each colour of the
palette for its dark counterpart under `prefers-color-scheme: dark`; a viewer that does not know
such rules shows it as it was drawn. Text stays text, so that it can be selected, and so that the
reader's own fonts show scripts that the drawing font lacks.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, UNKNOWN
from detcheck.kernels.settings import FULLY_INVARIANT, STOCK

INK = "#1d2329"
MUTED = "#5c6670"
RULE = "#d5dade"
PAPER = "#ffffff"
NEUTRAL = "#7d8a96"
STOCK_COLOUR = "#c8501e"
INVARIANT_COLOUR = "#0b6fb4"
FULLY_COLOUR = "#6a4fc4"
OTHER_COLOUR = "#12836b"
NEAR_TIE_COLOUR = "#d98d0b"
TIE_COLOUR = "#4da3d9"
CONFIDENT_COLOUR = "#a3246c"

DARK = {
    INK: "#e8ecef",
    MUTED: "#a2adb6",
    RULE: "#39424a",
    PAPER: "#171b1f",
    NEUTRAL: "#8d9aa6",
    STOCK_COLOUR: "#f0824f",
    INVARIANT_COLOUR: "#57aef0",
    FULLY_COLOUR: "#ab9bf5",
    OTHER_COLOUR: "#3fbf9f",
    NEAR_TIE_COLOUR: "#f2b341",
    TIE_COLOUR: "#7cc4f2",
    CONFIDENT_COLOUR: "#ee6fb3",
}
"""Each colour of the palette in dark. Both palettes suit the common kinds of colour blindness."""

FLIP_COLOURS = {
    TIE: TIE_COLOUR,
    NEAR_TIE: NEAR_TIE_COLOUR,
    CONFIDENT: CONFIDENT_COLOUR,
    UNKNOWN: NEUTRAL,
}

FONT_STACK = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
FONT_SIZE = 11.0
WIDTH, HEIGHT = 440, 310
MARGIN = 14.0
"""Size and margin of a chart in CSS pixels: small, so that a phone need not shrink its words."""
MAX_LEGEND = 3
"""Kernels settings that fit a legend; figures of more name them elsewhere."""

_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "detcheck",
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE - 1,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished figure."""

    name: str
    """File name without its ending, such as `variants`."""
    alt: str
    """Its content in words, for readers who cannot see it."""
    body: str
    """The `<svg>` element, for a page that has `adaptive_css` in its styles."""
    caption: str = ""
    """How to read it, in a sentence or two; empty if it explains itself."""
    width: float = WIDTH
    """In CSS pixels."""

    @property
    def wide(self) -> bool:
        """True if a phone would shrink its words until nobody can read them."""
        return self.width > 1.5 * WIDTH

    def standalone(self) -> str:
        """The figure as a file of its own, on its own background, adapting to dark."""
        style = f"<style>{adaptive_css('svg')}</style>"
        paper = f'<rect width="100%" height="100%" rx="8" style="fill: {PAPER}"/>'
        opening, rest = self.body.split(">", 1)
        return f'<?xml version="1.0" encoding="utf-8"?>\n{opening}>{style}{paper}{rest}\n'


def kernels_colour(kernels: str) -> str:
    """Colour of a kernels setting: stock, batch-invariant, fully-invariant, or a subset."""
    if ":" in kernels:
        return OTHER_COLOUR
    named = {STOCK: STOCK_COLOUR, FULLY_INVARIANT: FULLY_COLOUR}
    return named.get(kernels, INVARIANT_COLOUR)


def adaptive_css(scope: str) -> str:
    """Rules that turn the palette dark inside `scope`, a CSS selector of an svg element."""
    rules = "".join(
        f'{scope} [style*="{attribute}: {light}"]{{{attribute}:{dark}!important}}'
        for light, dark in DARK.items()
        for attribute in ("fill", "stroke")
    )
    return (
        f"{scope} *{{stroke-linejoin:round;stroke-linecap:butt}}"
        f"@media (prefers-color-scheme:dark){{{rules}}}"
    )


def style() -> Any:
    """Context in which every figure is made and saved."""
    return mpl.rc_context(_RC)


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure of a size in CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    return figure


def new_axes(
    figure: Figure,
    title: str,
    *,
    left: float = 46,
    bottom: float = 44,
    top: float = 58,
    grid: Literal["x", "y", "both"] = "y",
) -> Axes:
    """Axes that leave fixed margins, in CSS pixels: no layout engine, which costs more time."""
    width, height = figure.get_size_inches() * 72
    right = 14
    box = (left / width, bottom / height)
    axes = figure.add_axes((*box, 1 - (left + right) / width, 1 - (bottom + top) / height))
    axes.grid(axis=grid)
    axes.spines["left"].set_visible(grid != "y")
    title_of(figure, title)
    return axes


def title_of(figure: Figure, text: str) -> None:
    """Write the title of a figure at its top left."""
    width, height = figure.get_size_inches() * 72
    place = (MARGIN / width, 1 - 22 / height)
    figure.text(*place, text, weight="bold", fontsize=FONT_SIZE + 1.5, va="baseline")


def note(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], *,
    ha: str = "center", va: str = "center", color: str = MUTED,
) -> None:  # fmt: skip
    """Write small text at a point of the data, moved by `offset` CSS pixels."""
    axes.annotate(
        text, point, offset, textcoords="offset points", fontsize=FONT_SIZE - 1, color=color,
        ha=ha, va=va, annotation_clip=False,
    )  # fmt: skip


def legend(axes: Axes, columns: int, size: float | None = None) -> None:
    """Above the plot, from its left edge, so that it never covers data."""
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderpad=0,
        borderaxespad=0.4, handletextpad=0.4, columnspacing=1.4, handlelength=1.0,
    )  # fmt: skip
    if size is not None:
        for handle in legend.legend_handles:
            if handle is not None and hasattr(handle, "set_sizes"):
                handle.set_sizes([size])


def finish(figure: Figure, name: str, alt: str, caption: str = "") -> Drawing:
    """Turn a figure into SVG: ids of its own, page fonts, no style that leaks into the page."""
    buffer = StringIO()
    with warnings.catch_warnings():
        # The font that measures the text lacks some scripts; the reader's fonts will show them.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    width, height = figure.get_size_inches() * 72
    body = _clean(buffer.getvalue(), name, alt, width, height)
    return Drawing(name, alt, body, caption, float(width))


def _clean(svg: str, name: str, alt: str, width: float, height: float) -> str:
    inner = re.search(r"<svg\b[^>]*>(.*)</svg>", svg, flags=re.DOTALL)
    assert inner is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", inner.group(1), flags=re.DOTALL)
    body = re.sub(r"<style\b.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _clean_tag(tag.group(), name), body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(alt)}">{body}</svg>'
    )


def _clean_tag(tag: str, name: str) -> str:
    """Ids that are unique in a page of many figures; the page's fonts for the drawing font."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    return re.sub(r"'DejaVu Sans'[^;\"]*", FONT_STACK, tag)
