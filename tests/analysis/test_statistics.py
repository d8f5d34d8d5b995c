from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recorded import record, small_experiment
from scipy import stats

from detcheck.analysis import analyse
from detcheck.analysis.statistics import chao1, good_turing_coverage, zero_upper_bound
from detcheck.completion import Completion
from detcheck.engines.scripted import Planted
from detcheck.experiment import STOCK
from detcheck.rundir import Run
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer


@pytest.mark.parametrize("comparisons", [1, 3, 59, 999])
def test_the_bound_is_that_of_clopper_and_pearson(comparisons: int) -> None:
    interval = stats.binomtest(0, comparisons, alternative="less").proportion_ci(0.95)
    assert zero_upper_bound(comparisons) == pytest.approx(interval.high, rel=1e-6)


def test_nothing_compared_bounds_nothing() -> None:
    assert zero_upper_bound(0) == 1.0


def test_coverage_is_the_share_that_is_no_singleton() -> None:
    assert good_turing_coverage(np.array([5, 3, 1, 1])) == pytest.approx(0.8)
    assert good_turing_coverage(np.array([7])) == 1.0
    assert good_turing_coverage(np.array([1, 1])) == 0.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([9], 1), ([5, 2, 1, 1], 4 + 4 / 2), ([5, 1, 1, 1], 4 + 3), ([4, 4, 1], 3)],
)
def test_chao1(counts: list[int], expected: float) -> None:
    assert chao1(np.array(counts)) == expected


def test_chao1_does_not_exceed_the_truth_on_average() -> None:
    """A lower bound: 200 equally likely variants, 150 answers, far from all of them seen."""
    rng = np.random.default_rng(0)
    estimates = [
        chao1(np.unique(rng.integers(0, 200, 150), return_counts=True)[1]) for _ in range(200)
    ]
    seen = 200 * (1 - (1 - 1 / 200) ** 150)
    assert seen < np.mean(estimates) < 220


def test_exact_repeats_and_batches_of_one_count_once(planted_run: Callable[..., Run]) -> None:
    """Of 5 + 16 completions, one of the batch of 1 and, after its repeat, 12 of 16 are news."""
    run = planted_run(kernels=(STOCK,), batch_sizes=(1, 4), completions=21)
    asked = {record.batch_size: (record.asked, record.trials) for record in run.conditions}
    assert asked == {1: (5, 5), 4: (16, 4)}
    statistics = analyse(run).group(0, STOCK).statistics
    assert statistics is not None
    assert statistics.effective_trials == 1 + 3
    assert statistics.differ_upper_bound == pytest.approx(zero_upper_bound(1 + 12 - 1))


@pytest.mark.parametrize(
    ("engine", "traffic", "expected"),
    [("static", "alone", 1), ("static", "mixed", 9), ("continuous", "alone", 9)],
)
def test_lockstep_copies_of_the_prompt_are_one_load(
    tmp_path: Path, engine: str, traffic: str, expected: int
) -> None:
    """Ten trials of four probes each: in lockstep, arrivals change nothing."""
    batch_size = 4 if traffic == "alone" else 8
    experiment = small_experiment(
        engine=engine,
        traffic=traffic,
        kernels=(STOCK,),
        batch_sizes=(batch_size,),
        completions=40,
    )
    statistics = analyse(record(tmp_path / "run", None, experiment)).group(0, STOCK).statistics
    assert statistics is not None
    assert statistics.effective_trials == expected
    assert statistics.differ_upper_bound == pytest.approx(zero_upper_bound(4 * expected - 1))


def differing_repeats(trial: Trial, position: int) -> Completion:
    """Trial 1, which ought to repeat trial 0, gives another answer at position 2."""
    return answer([1, 2, 9 if (trial.index, position) == (1, 2) else 3], rows=4)


def test_where_a_repeat_differs_all_completions_count(tmp_path: Path) -> None:
    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(4,), completions=16)
    run = record(tmp_path / "run", AnsweringEngine(differing_repeats), experiment)
    group = analyse(run).group(0, STOCK)
    assert group.by_batch_size[0].exact_repeats_differ == 1
    assert group.statistics is not None
    assert group.statistics.effective_trials == 4
    assert group.statistics.coverage == pytest.approx(15 / 16)


def test_a_bound_is_given_only_where_none_differed(planted_run: Callable[..., Run]) -> None:
    analysis = analyse(planted_run(Planted(3, 1, rate=0.5)))
    stock, invariant = analysis.groups
    assert stock.statistics is not None
    assert invariant.statistics is not None
    assert stock.distinct == 2
    assert stock.statistics.differ_upper_bound is None
    assert invariant.statistics.differ_upper_bound is not None


def by_batch_size(trial: Trial, position: int) -> Completion:
    """Batches of 2 give two answers in halves, batches of 4 one of these only."""
    other = trial.condition.batch_size == 2 and position == 1
    return answer([1, 2 if other else 3])


def test_agreement_is_the_chance_that_two_completions_agree(tmp_path: Path) -> None:
    experiment = small_experiment(
        prompts=("One?", "Two?"), kernels=(STOCK,), batch_sizes=(2, 4), completions=12
    )
    run = record(tmp_path / "run", AnsweringEngine(by_batch_size), experiment)
    pairs, fours = (r.completed for r in run.conditions[:2])
    assert (pairs, fours) == (4, 8)
    agreement = analyse(run).agreement
    within = 2 * (2 * 1) / (4 * 3)
    block = [[within, 0.5], [0.5, 1.0]]
    np.testing.assert_allclose(agreement[:2, :2], block)
    np.testing.assert_allclose(agreement[2:, 2:], block)
    assert np.isnan(agreement[:2, 2:]).all()


def test_agreement_of_too_few_is_unknown(tmp_path: Path) -> None:
    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 2), completions=3)
    run = record(tmp_path / "run", None, experiment, limit=1)
    assert run.conditions[0].completed == 1
    assert np.isnan(analyse(run).agreement).all()


def test_total_agreement_rate_is_by_prompt(tmp_path: Path) -> None:
    def one_prompt_differs(trial: Trial, position: int) -> Completion:
        differs = trial.requests[position].prompt == "Two?" and position
        return answer([1, 2 if differs else 3])

    prompts = ("One?", "Two?", "Three?", "Four?")
    experiment = small_experiment(
        prompts=prompts, kernels=(STOCK,), batch_sizes=(2,), completions=4
    )
    run = record(tmp_path / "run", AnsweringEngine(one_prompt_differs), experiment)
    assert analyse(run).total_agreement_rate == {STOCK: 0.75}
