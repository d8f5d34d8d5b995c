"""A run as pandas tables: the documented columns, and a row for everything that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from analysis.answers import AnsweringEngine, answer
from documented import documented
from recorded import record, small_experiment

from detcheck.completion import Completion
from detcheck.engines.scripted import Planted
from detcheck.rundir import Run, frames
from detcheck.traffic import Trial


@pytest.fixture
def run(planted_run: Callable[..., Run]) -> Run:
    return planted_run(Planted(5, 3, rate=0.4), engine={"noise": 0.1, "fail_rate": 0.1})


def test_columns_are_those_documented(run: Run) -> None:
    for function in (frames.completions_frame, frames.variants_frame):
        frame = function(run)
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == documented(function)


def test_one_row_a_request(run: Run) -> None:
    frame = run.completions_frame()
    assert len(frame) == len(run.completions)
    by_condition = frame.groupby("condition", observed=False)
    for condition in run.conditions:
        rows = by_condition.get_group(condition.condition_id)
        assert (rows["variant"] >= 0).sum() == condition.completed
        assert (rows["variant"] == -1).sum() == condition.failed
        assert set(rows["kernels"]) == {condition.kernels}
        assert set(rows["batch_size"]) == {condition.batch_size}
    assert (frame["variant"] == -1).any()
    assert frame["noise"].max() > 0


def test_completions_join_variants_by_number(run: Run) -> None:
    completions, variants = run.completions_frame(), run.variants_frame()
    counts = completions[completions["variant"] >= 0].groupby("variant").size()
    assert counts.tolist() == variants["completions"].tolist()
    assert variants["text"].tolist() == [variant.text for variant in run.variants]
    assert set(variants["num_tokens"]) == {24}
    assert set(variants["prompt"]) == set(run.experiment.prompts)


def test_unobserved_batches_have_no_mean(tmp_path: Path) -> None:
    engine = AnsweringEngine(lambda trial, position: answer([1, 2]))
    frame = record(tmp_path / "run", engine).completions_frame()
    assert set(frame["rows_max"]) == {0}
    assert frame["rows_mean"].isna().all()
    assert frame["noise"].isna().all()
    assert set(frame["logprob_digest"]) == {-1}


def test_answers_of_a_server_need_no_tokens_and_no_valid_unicode(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        return Completion("half \ud800 a pair", "stop")

    frame = record(tmp_path / "run", AnsweringEngine(respond)).variants_frame()
    assert frame["text"].tolist() == ["half \ud800 a pair"]
    assert frame["num_tokens"].isna().all()


def test_a_run_before_its_first_trial_has_empty_tables(tmp_path: Path) -> None:
    run = record(tmp_path / "run", limit=0)
    for function in (frames.completions_frame, frames.variants_frame):
        frame = function(run)
        assert len(frame) == 0
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == documented(function)


def test_a_notebook_shows_the_conditions_of_an_unfinished_run(tmp_path: Path) -> None:
    run = record(tmp_path / "run", limit=1)
    shown = run._repr_html_()
    assert "not finished" in shown
    assert shown.count("<tr>") == 1 + len(run.conditions)
    assert "p0/stock/b1" in shown


def test_a_notebook_shows_words_as_words(tmp_path: Path) -> None:
    experiment = small_experiment(prompts=("<script>alert(1)</script>\u202e",))
    run = record(tmp_path / "run", None, experiment)
    rows = ({"prompt": experiment.prompts[0], "share": np.float64(0.123456), "none": None},)
    shown = frames.table_html("<b>", rows)
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "\u202e" not in shown
    assert "<td>0.1235</td><td></td>" in shown
    assert "<script>" not in run._repr_html_()
