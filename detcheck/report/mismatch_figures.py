"""Figures of sampler against trainer: probabilities, log-ratio by position, and the links."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from detcheck.analysis.mismatch.headline import chain_of
from detcheck.analysis.mismatch.results import LINK_NAMES, MismatchReport, MismatchRow
from detcheck.report import figure_style as look
from detcheck.report.figure_style import Drawing
from detcheck.report.text import clip, short_kernels

_ROW = 24
_NAMES = 128
_TOP, _BOTTOM = 46, 44
_LINK_COLOURS = {
    "recorded-decode": look.STOCK_COLOUR,
    "decode-prefill": look.INVARIANT_COLOUR,
    "prefill-kernels": look.FULLY_COLOUR,
    "prefill-layout": look.OTHER_COLOUR,
    "layout-dtype": look.NEAR_TIE_COLOUR,
}
_BY_POSITION = 12
"""Groups of positions, at most."""


def mismatch_drawings(report: MismatchReport) -> list[Drawing]:
    """The figures of a measurement; none of a measurement without tokens."""
    if not report.tokens:
        return []
    with look.style():
        return [_links(report), _probabilities(report), _by_position(report)]


def _probabilities(report: MismatchReport) -> Drawing:
    figure = look.new_figure()
    axes = look.new_axes(figure, "Probability of each token", grid="both", top=60)
    for one in report.tokens:
        colour = look.kernels_colour(one.kernels)
        axes.scatter(
            np.exp(one.sampler), np.exp(one.trainer), 7, color=colour, alpha=0.5, linewidths=0,
            label=clip(short_kernels(one.kernels), 16),
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=look.NEUTRAL, linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("sampler")
    axes.set_ylabel("trainer")
    look.legend(axes, look.MAX_LEGEND, 24)
    alt = "Probability of each token, sampler against trainer: " + "; ".join(
        f"{row.arm}, correlation {row.pearson:.6f}" for row in _first(report)
    )
    caption = "A point is a token. Points on the line have the same probability on both sides."
    return look.finish(figure, "mismatch_probabilities", alt, caption)


def _by_position(report: MismatchReport) -> Drawing:
    figure = look.new_figure()
    axes = look.new_axes(figure, "Log-ratio by position", top=60, left=58)
    for one in report.tokens:
        positions, gaps = np.array(one.positions), np.array(one.trainer) - np.array(one.sampler)
        groups = np.array_split(np.unique(positions), min(_BY_POSITION, len({*one.positions})))
        at, middle, low, high = [], [], [], []
        for group in groups:
            own = gaps[np.isin(positions, group)]
            at.append(float(group.mean()))
            middle.append(float(np.abs(own).mean()))
            low.append(float(np.quantile(own, 0.05)))
            high.append(float(np.quantile(own, 0.95)))
        colour = look.kernels_colour(one.kernels)
        axes.fill_between(at, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(at, middle, color=colour, label=clip(short_kernels(one.kernels), 16))
    axes.axhline(0, color=look.NEUTRAL, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("position in the completion")
    axes.set_ylabel("nats")
    look.legend(axes, look.MAX_LEGEND)
    worst = max(report.slices, key=lambda each: each.mean_abs, default=None)
    alt = "Log-ratio by position" + (
        "" if worst is None else f": largest mean {worst.mean_abs:.2g} nats at {worst.name}"
    )
    caption = (
        "Line: mean of |r|. Band: the middle nine tenths of r = log π of the trainer minus log π "
        "of the sampler."
    )
    return look.finish(figure, "mismatch_positions", alt, caption)


def _links(report: MismatchReport) -> Drawing:
    rows = _first(report)
    height = _TOP + _BOTTOM + _ROW * len(rows) + 20 * len(_LINK_COLOURS) // 2
    figure = look.new_figure(height=max(150, height))
    axes = look.new_axes(figure, "Which link carries the gap", grid="x", left=_NAMES, top=_TOP + 44)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    named: set[str] = set()
    words = []
    for place, row in enumerate(rows):
        left = 0.0
        look.note(axes, clip(_name(row), 20), (0, place), (-6, 0), ha="right", color=look.INK)
        for link in chain_of(row, report.rows):
            label = LINK_NAMES[link.link] if link.link not in named and link.mean_abs else None
            named |= {link.link} if label else set()
            axes.barh(
                place, link.mean_abs, 0.56, left=left, color=_LINK_COLOURS[link.link],
                linewidth=0, label=label,
            )  # fmt: skip
            left += link.mean_abs
            words.append(f"{_name(row)}, {LINK_NAMES[link.link]}: {link.mean_abs:.2g}")
        if left == 0:
            look.note(axes, "exactly 0", (0, place), (6, 0), ha="left")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_xlabel("mean |r| of each link, nats")
    if named:
        look.legend(axes, 2)
    alt = "Mean gap of each link: " + "; ".join(words)
    caption = "Links may cancel, so that the whole gap can be smaller than their sum."
    return look.finish(figure, "mismatch_links", alt, caption)


def _name(row: MismatchRow) -> str:
    return short_kernels(row.kernels)


def _first(report: MismatchReport) -> Sequence[MismatchRow]:
    """The whole gap with the largest mean, of each kernels setting."""
    worst: dict[str, MismatchRow] = {}
    for row in report.wholes():
        if row.kernels not in worst or row.mean_abs > worst[row.kernels].mean_abs:
            worst[row.kernels] = row
    return tuple(worst.values())
