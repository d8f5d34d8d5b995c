"""`make gpu`: what the sections on whole models count, compare and keep."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import supervisor
from gpu_sections.answers import Answers, cell, first_divergence, show_loads
from gpu_sections.clock import Clock
from gpu_sections.common import geometric_mean
from gpu_sections.found_kernels import MISSING, exit_if_compiled
from gpu_sections.variants import (
    WITH_GRAPHS,
    changed_by_graphs,
    fused_forms,
    show_variants,
    survived,
)

from detcheck.kernels.fused import gpu, proofs

ONE, OTHER = (1, 2, 3), (1, 2, 4)


def answers(name: str, *loads: tuple[int, Counter[tuple[int, ...]], float]) -> Answers:
    found = Answers(name)
    for load in loads:
        found.note(*load)
    return found


def test_answers_are_counted_over_loads() -> None:
    found = answers("stock", (1, Counter([ONE]), 1.0), (2, Counter([ONE, OTHER]), 2.0)).group()
    assert (found["completions"], found["distinct"], found["counts"]) == (3, 2, [2, 1])
    assert found["first_divergence"] == 2
    assert [load["tokens_per_second"] for load in found["loads"]] == [3.0, 3.0]
    assert first_divergence([ONE]) is None
    assert first_divergence([ONE, ONE[:2]]) == 2


def test_a_load_that_is_asked_again_counts_with_its_last_time() -> None:
    """The first time chooses tiles; its answers count all the same."""
    found = answers("stock", (1, Counter([ONE]), 9.0), (1, Counter([ONE]), 1.0)).group()
    assert found["completions"] == 2
    assert [load["elapsed_s"] for load in found["loads"]] == [1.0]


def test_the_table_of_loads_shows_the_cost_against_stock() -> None:
    stock = answers("stock", (1, Counter([ONE]), 1.0), (2, Counter([ONE, OTHER]), 1.0))
    ours = answers("batch-invariant", (1, Counter([ONE]), 1.5))
    lines = show_loads([stock.group(), ours.group()])
    assert lines[-2:] == ["| 1 | 1, 3 (1.00) | 1, 2 (1.50) |", "| 2 | 2, 6 (1.00) | – |"]
    assert cell({"distinct": 1, "tokens_per_second": 3.0}, None) == "1, 3"


def test_graphs_that_change_an_answer_are_a_failure() -> None:
    without = answers("batch-invariant", (1, Counter([ONE]), 1.0))
    for given, failures in ((ONE, 0), (OTHER, 1)):
        graphs = answers(WITH_GRAPHS, (1, Counter([given]), 1.0))
        found = {"batch-invariant": without, WITH_GRAPHS: graphs}
        assert len(changed_by_graphs(found)) == failures
    assert changed_by_graphs({"batch-invariant": without}) == []


def test_a_fused_form_that_a_card_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.NORMS, "faults", {1: None, 2: None})
    monkeypatch.setattr(gpu.ROTATIONS, "faults", {1: None, 2: proofs.DIFFERENT})
    monkeypatch.setattr(gpu.ACTIVATIONS, "faults", {})
    found = fused_forms()
    assert found["norm"] == ["served"]
    assert found["rotation"] == ["served", proofs.DIFFERENT]
    last = show_variants({"model": "m", "groups": [], "run": None, "fused_forms": found})[-1]
    assert f"rotation: served, {proofs.DIFFERENT}" in last
    assert "activation: not tried" in last


def test_a_process_that_looks_for_kernels_ends_at_one_that_is_missing() -> None:
    exit_if_compiled(cache_hit=True, src=None)
    with pytest.raises(SystemExit) as ended:
        exit_if_compiled(cache_hit=False, src=None)
    assert ended.value.code == MISSING


@pytest.mark.parametrize(("code", "expected"), [(0, ["--find"]), (4, ["--find", "--compile"])])
def test_kernels_are_compiled_only_if_one_is_missing(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: list[str]
) -> None:
    asked: list[str] = []

    def exit_codes(option: str, count: int, clock: Clock) -> list[int]:
        asked.append(option)
        return [0] * (count - 1) + [code]

    monkeypatch.setattr(supervisor, "exit_codes", exit_codes)
    supervisor.compile_ahead(Clock(60))
    assert asked == expected


@pytest.mark.sweep
def test_the_completions_are_kept_in_a_run_directory(tmp_path: Path) -> None:
    """All settings, each load whole; detcheck reads and verifies it."""
    from test_gpu_dry_run import dry_run

    from detcheck import rundir

    code, report = dry_run(tmp_path, "--sections", "variants")
    result: dict[str, Any] = report["sections"]["variants"]
    assert code == 0, result
    run = rundir.load(Path(result["run"]))
    assert run.finished
    assert {record.status for record in run.conditions} == {"done"}
    assert len(run.completions) == 3 * (1 + 4)
    assert set(run.proofs) == {"stock", "batch-invariant", "fully-invariant"}
    assert [group["completions"] for group in result["groups"][:3]] == [5, 5, 5]


def test_a_setting_that_fails_costs_itself_alone() -> None:
    found, failures = Answers("stock"), list[str]()
    with survived(found, failures):
        raise ValueError("planted")
    assert found.failed
    assert failures == ["stock: ValueError: planted"]
    with survived(found, failures):
        found.note(1, Counter([ONE]), 1.0)
    assert not found.failed


@pytest.mark.parametrize(
    ("values", "mean"),
    [([2.0, 8.0], 4.0), ([2.0, float("inf"), float("nan"), 0.0, 8.0], 4.0), ([], 0.0)],
)
def test_what_was_not_measured_is_left_out_of_a_mean(values: list[float], mean: float) -> None:
    assert geometric_mean(values) == pytest.approx(mean)
