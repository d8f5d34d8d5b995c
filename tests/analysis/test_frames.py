"""An analysis as pandas tables: the documented columns, the numbers of the records, today's CSV."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from documented import documented
from recorded import record, small_experiment

from detcheck.analysis import Analysis, analyse, frames
from detcheck.completion import Completion
from detcheck.engines.scripted import Planted
from detcheck.report.csv_export import csv_files
from detcheck.rundir import Run
from detcheck.traffic import Trial

from .answers import AnsweringEngine

FUNCTIONS = (frames.conditions_frame, frames.variants_frame, frames.branchings_frame)


@pytest.fixture
def analysis(planted_run: Callable[..., Run]) -> Analysis:
    planted = (Planted(5, 3, rate=0.4), Planted(9, 2, rate=0.3, gap=1.0))
    return analyse(planted_run(*planted, prompts=("One?", "Two?"), engine={"noise": 0.1}))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_columns_are_those_documented(
    analysis: Analysis, function: Callable[..., object], tmp_path: Path
) -> None:
    empty = analyse(record(tmp_path / "empty", limit=0))
    for analysed in (analysis, empty):
        frame = function(analysed)
        assert {n: str(dtype) for n, dtype in frame.dtypes.items()} == documented(function)


def test_one_row_a_condition(analysis: Analysis) -> None:
    frame = analysis.frame()
    assert sorted(frame["condition"]) == sorted(r.condition_id for r in analysis.run.conditions)
    rows = [row for group in analysis.groups for row in group.by_batch_size]
    for name in frames.ROW_COLUMNS:
        expected = [getattr(row, name) for row in rows]
        found = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        assert found == expected, name


def test_one_row_a_variant(analysis: Analysis) -> None:
    frame = analysis.variants_frame()
    for group in analysis.groups:
        rows = frame[(frame["prompt"] == group.prompt) & (frame["kernels"] == group.kernels)]
        assert rows["count"].sum() == group.completions
        assert rows["rank"].tolist() == list(range(1, group.distinct + 1))
        assert rows["is_reference"].sum() == 1
        assert rows["flip"].notna().sum() == len(group.divergences)
        assert rows["first_divergence"].dropna().tolist() == [
            divergence.position for divergence in group.divergences
        ]


def test_branchings_count_as_the_flips_do(analysis: Analysis) -> None:
    frame = analysis.branchings_frame()
    assert len(frame) > 2
    for group in analysis.groups:
        rows = frame[(frame["prompt"] == group.prompt) & (frame["kernels"] == group.kernels)]
        counts = rows["flip"].value_counts()
        assert {kind: n for kind, n in group.flips.items() if n} == counts.to_dict()
        completions = rows.groupby("flip")["completions"].sum()
        assert {k: n for k, n in group.flip_completions.items() if n} == completions.to_dict()


def test_the_tables_hold_what_the_csv_files_hold(analysis: Analysis) -> None:
    files = csv_files(analysis)
    for text, frame in (
        (files["conditions.csv"], analysis.frame()),
        (files["variants.csv"], analysis.variants_frame()),
        (files["branchings.csv"], analysis.branchings_frame()),
    ):
        head, *lines = text.splitlines()
        assert set(head.split(",")) <= set(frame.columns)
        assert len(lines) == len(frame)


def test_answers_need_not_be_valid_unicode(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        return Completion(f"half \ud800 a pair {position > 0}", "stop")

    experiment = small_experiment(batch_sizes=(1, 4))
    analysis = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment))
    texts = analysis.variants_frame()["text"].tolist()
    assert all("\ud800" in text for text in texts)
    assert analysis.branchings_frame()["piece"].tolist() == ["False", "False"]


def test_a_notebook_shows_the_summary(analysis: Analysis) -> None:
    shown = analysis._repr_html_()
    assert shown.count("<tr>") == 1 + len(analysis.groups)
    assert "<td>One?</td><td>stock</td>" in shown
    assert "batches of up to 16 of 16 asked" in shown


def test_pandas_is_imported_only_when_a_table_is_asked_for() -> None:
    code = (
        "import sys, detcheck, detcheck.analysis, detcheck.analysis.frames, detcheck.rundir.frames;"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
