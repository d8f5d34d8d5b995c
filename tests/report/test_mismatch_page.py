"""The page of sampler against trainer: its rows, its figures, and no markup from a model's name."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from detcheck.analysis.mismatch.headline import headline_of
from detcheck.analysis.mismatch.measures import measure
from detcheck.analysis.mismatch.results import (
    DECODE_PREFILL,
    RECORDED_DECODE,
    WHOLE,
    MismatchReport,
    MismatchRow,
    MismatchTokens,
)
from detcheck.report.mismatch_figures import mismatch_drawings
from detcheck.report.mismatch_page import mismatch_files


def made(stock_gap: float) -> MismatchReport:
    """Stock with a gap in the prefill, fully-invariant without any."""
    generator = np.random.default_rng(0)
    sampler = [-generator.exponential(1, 40) for _ in range(4)]
    rows, tokens = [], []
    for kernels, gap in (("stock", stock_gap), ("fully-invariant", 0.0)):
        moved = [each + generator.normal(0, 1, 40) * gap for each in sampler]
        rows += [
            MismatchRow.of(measure(sampler, sampler), kernels, RECORDED_DECODE),
            MismatchRow.of(measure(sampler, moved), kernels, DECODE_PREFILL),
            MismatchRow.of(measure(sampler, moved), kernels, WHOLE, "padded", "bfloat16"),
        ]
        tokens.append(
            MismatchTokens(
                kernels=kernels,
                trainer_layout="padded",
                trainer_dtype="bfloat16",
                positions=(*range(40),) * 4,
                sampler=tuple(np.concatenate(sampler).tolist()),
                trainer=tuple(np.concatenate(moved).tolist()),
            )
        )
    return MismatchReport(
        rows=tuple(rows),
        headline=headline_of(rows, ()),
        model="<script>alert(1)</script>",
        tokens=tuple(tokens),
    )


def test_the_headline_names_the_link_that_carries_the_gap() -> None:
    headline = made(0.1).headline
    assert "stock: decode steps ↔ one prefill carries the gap" in headline
    assert "fully-invariant: no gap, all of 160 tokens are bitwise equal (padded)" in headline


def test_the_page_has_every_row_and_figure_and_escapes_names() -> None:
    report = made(0.1)
    files = mismatch_files(report)
    page = files["report.html"]
    assert page.count("<tr>") == 1 + len(report.rows)
    assert page.count("<figure>") == 3
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for name, text in files.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(text)


@pytest.mark.parametrize(("gap", "exact"), [(0.1, 1), (0.0, 2)])
def test_the_links_figure_says_which_are_exactly_zero(gap: float, exact: int) -> None:
    links = mismatch_drawings(made(gap))[0]
    assert links.body.count("exactly 0") == exact
    assert links.alt.count("decode steps ↔ one prefill: 0;") + links.alt.endswith(": 0") == exact


def test_a_measurement_without_tokens_has_no_figures() -> None:
    assert mismatch_drawings(MismatchReport(rows=(), headline="")) == []
