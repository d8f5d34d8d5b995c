"""Figures of the probes: drawn from what `ops` and `trace` print, and shown in a run's report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detcheck.analysis.results import Analysis
from detcheck.errors import UsageError
from detcheck.report.probe_figures import growth, invariance_matrix, probe_drawings
from detcheck.report.write import render_files, write_probe


def cell(op: str, relation: str, kernels: str, differ: int, **changes: Any) -> dict[str, Any]:
    return {
        "op": op, "relation": relation, "dtype": "bfloat16", "shape": "8", "kernels": kernels,
        "rows": 200, "rows_differ": differ, "max_ulp": 1, "classes": [], "relative_time": 1.0,
    } | changes  # fmt: skip


CELLS = [
    cell("linear", "batch-size", "stock", 36),
    cell("linear", "batch-size", "stock", 4, dtype="float32"),
    cell("linear", "position", "stock", 0),
    cell("sum", "batch-size", "stock", 1),
    cell("linear", "batch-size", "batch-invariant", 0),
]
LAYERS = [
    {"layer": f"model.layers.{index}", "relative": value} for index, value in enumerate((0, 2e-3))
]
FIRST = {"op": "aten::<b>mm", "module": "model.layers.0"}


def shown(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_matrix_shows_the_worst_share_of_each_op_and_relation() -> None:
    drawing = invariance_matrix(CELLS)
    words = shown(drawing.body)
    assert {"linear", "sum", "batch-size", "prefill-decode", "stock", "batch-invariant"} <= {*words}
    assert words.count("18") == 1, "the worst of two dtypes"
    assert words.count("&lt;1") == 1
    assert words.count("·") == 2
    assert "stock: linear, sum differs; batch-invariant: no op differs" in drawing.alt


def test_a_relation_that_is_new_gets_a_column() -> None:
    words = shown(invariance_matrix([*CELLS, cell("mm", "prefix-cache", "stock", 2)]).body)
    assert "prefix-cache" in words
    assert words.count("prefix-cache") == words.count("repeat")


def test_the_growth_names_what_came_first_and_escapes_it() -> None:
    drawing = growth(LAYERS, FIRST)
    assert drawing is not None
    assert "first: aten::&lt;b&gt;mm" in shown(drawing.body)
    assert "<b>" not in drawing.body
    assert "2.0e-03" in drawing.alt


def test_a_trace_that_found_nothing_has_no_figure() -> None:
    assert growth([], None) is None


def test_what_is_kept_beside_a_run_is_drawn(tmp_path: Path) -> None:
    assert probe_drawings(tmp_path) == []
    write_probe(json.dumps({"cells": CELLS}), "ops.json", tmp_path)
    written = write_probe(json.dumps({"layers": LAYERS, "first": FIRST}), "trace.json", tmp_path)
    assert [path.name for path in written] == ["trace.json", "invariance_matrix.svg", "growth.svg"]
    assert [drawing.name for drawing in probe_drawings(tmp_path)] == ["invariance_matrix", "growth"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cells": []}', '{"cells": [{"op": 1}]}', "\x00"]
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "ops.json").write_text(text)
    with pytest.raises(UsageError, match=r"ops\.json is not what `detcheck ops --out` writes"):
        probe_drawings(tmp_path)


@pytest.mark.sweep
def test_the_report_of_a_run_shows_what_is_kept_beside_it(story: Analysis, tmp_path: Path) -> None:
    render = render_files(story, ("html", "md"))
    assert not any("Which op is it?" in text for text in render.values())
    write_probe(json.dumps({"cells": CELLS}), "ops.json", tmp_path)
    beside = replace(story, run=replace(story.run, path=tmp_path))
    files = render_files(beside, ("html", "md"))
    assert "Which op is it?" in files["report.html"]
    assert 'aria-label="Rows that differ' in files["report.html"]
    assert "(figures/invariance_matrix.svg)" in files["report.md"]
    assert "figures/invariance_matrix.svg" in files
