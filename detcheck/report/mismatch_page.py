"""The page of a measurement of sampler against trainer: one HTML file that loads nothing."""

from __future__ import annotations

from markupsafe import Markup

from detcheck.analysis.mismatch.results import LINK_NAMES, MismatchReport, MismatchRow
from detcheck.report import html
from detcheck.report.mismatch_figures import mismatch_drawings

PAGE = "report.html"
COLUMNS = {
    "k1": "K1",
    "k3": "K3",
    "mean_abs": "mean |r|",
    "p99_abs": "99 % |r|",
    "max_abs": "max |r|",
    "ratio_outside": "w outside",
    "ess": "ESS",
    "bitwise_tokens": "equal tokens",
    "bitwise_sequences": "equal sequences",
}
"""Measures of the table, and their headings."""
_SHARES = {"ratio_outside", "ess", "bitwise_tokens", "bitwise_sequences"}


def mismatch_files(report: MismatchReport) -> dict[str, str]:
    """The page and its figures, by file name."""
    drawings = mismatch_drawings(report)
    page = (
        html.environment()
        .get_template("mismatch.html.j2")
        .render(
            report=report,
            drawings=drawings,
            columns=COLUMNS,
            names=LINK_NAMES,
            cell=_cell,
            interval=_interval,
            css=Markup(html.stylesheet()),
        )
    )
    figures = {f"figures/{one.name}.svg": one.standalone() for one in drawings}
    return {PAGE: page, **figures}


def _cell(row: MismatchRow, name: str) -> str:
    value = getattr(row, name)
    return f"{value:.2%}" if name in _SHARES else f"{value:.3g}"


def _interval(row: MismatchRow, name: str) -> str:
    """The interval of a measure in words; empty without one."""
    if name not in row.intervals:
        return ""
    low, high = row.intervals[name]
    return f"{low:.2g} to {high:.2g}"
