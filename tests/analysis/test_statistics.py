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
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.rundir import Run
from detcheck.targets import InProcess
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
    assert (statistics.comparisons, statistics.differing) == (12, 0)
    assert statistics.differ_upper_bound == pytest.approx(zero_upper_bound(12))


def test_of_40_completions_32_are_comparisons(planted_run: Callable[..., Run]) -> None:
    """16 in one batch of 16; 20 in batches of 4, of which 4 repeat others; 4 alone."""
    run = planted_run(kernels=(STOCK,), batch_sizes=(1, 4, 16), completions=40)
    assert {record.batch_size: record.asked for record in run.conditions} == {16: 16, 4: 20, 1: 4}
    group = analyse(run).group(0, STOCK)
    assert group.completions == 40
    assert group.comparisons == 32
    assert group.statistics is not None
    assert group.statistics.differ_upper_bound == pytest.approx(0.089, abs=0.0005)


def test_without_a_batch_of_one_the_reference_itself_is_not_compared(
    planted_run: Callable[..., Run],
) -> None:
    run = planted_run(kernels=(STOCK,), batch_sizes=(8,), completions=8)
    group = analyse(run).group(0, STOCK)
    assert (group.completions, group.comparisons) == (8, 7)


def test_a_batch_of_one_alone_makes_no_comparison(planted_run: Callable[..., Run]) -> None:
    run = planted_run(kernels=(STOCK,), batch_sizes=(1,), completions=30)
    group = analyse(run).group(0, STOCK)
    assert group.comparisons == 0
    assert group.statistics is not None
    assert group.statistics.differ_upper_bound == 1.0


def test_comparisons_that_differ_are_counted(planted_run: Callable[..., Run]) -> None:
    run = planted_run(
        Planted(3, 1, min_batch_size=8), kernels=(STOCK,), batch_sizes=(1, 4, 8), completions=32
    )
    group = analyse(run).group(0, STOCK)
    asked = {record.batch_size: record.asked for record in run.conditions}
    assert group.statistics is not None
    assert (asked[8], group.statistics.differing) == (16, 8)  # the second batch repeats the first
    assert group.statistics.differ_upper_bound is None


def test_completions_that_failed_are_no_comparisons(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        return Completion("", "error", error="gone") if position == 2 else answer([1, 2])

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 8), completions=10)
    group = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).group(0, STOCK)
    assert (group.failed, group.comparisons) == (1, 7)


@pytest.mark.parametrize(
    ("planted", "noise", "alive"),
    [((), 0.0, False), ((), 1e-9, True), ((Planted(3, 1),), 0.0, True)],
)
def test_a_control_is_alive_if_anything_moved(
    planted_run: Callable[..., Run], planted: tuple[Planted, ...], noise: float, alive: bool
) -> None:
    analysis = analyse(planted_run(*planted, engine={"noise": noise}))
    stock, invariant = analysis.groups
    assert stock.alive is alive
    assert analysis.control(invariant) is stock
    assert analysis.control(stock) is None


def test_without_log_probabilities_one_answer_does_not_tell_whether_it_is_alive(
    tmp_path: Path,
) -> None:
    for name, differs, alive in (("one", False, None), ("two", True, True)):
        engine = AnsweringEngine(
            lambda trial, position, differs=differs: answer([1, 2 if differs and position else 3])
        )
        experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 4))
        group = analyse(record(tmp_path / name, engine, experiment)).group(0, STOCK)
        assert group.alive is alive


def test_a_control_without_a_comparison_is_neither_alive_nor_dead(
    planted_run: Callable[..., Run],
) -> None:
    analysis = analyse(planted_run(batch_sizes=(1,)))
    assert analysis.group(0, STOCK).alive is None


def test_kernels_without_stock_beside_them_have_no_control(
    planted_run: Callable[..., Run],
) -> None:
    analysis = analyse(planted_run(kernels=(BATCH_INVARIANT,)))
    assert analysis.control(analysis.groups[0]) is None


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
        traffic=traffic,
        kernels=(STOCK,),
        batch_sizes=(batch_size,),
        completions=40,
    )
    run = record(tmp_path / "run", None, experiment, target=InProcess(engine=engine))
    statistics = analyse(run).group(0, STOCK).statistics
    assert statistics is not None
    assert statistics.effective_trials == expected
    assert statistics.comparisons == 4 * expected - 1
    assert statistics.differ_upper_bound == pytest.approx(zero_upper_bound(4 * expected - 1))


def differing_repeats(trial: Trial, position: int) -> Completion:
    """Trial 1, which ought to repeat trial 0, gives another answer at position 2."""
    return answer([1, 2, 9 if (trial.index, position) == (1, 2) else 3], rows=4)


def test_if_a_repeat_differs_all_completions_count(tmp_path: Path) -> None:
    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(4,), completions=16)
    run = record(tmp_path / "run", AnsweringEngine(differing_repeats), experiment)
    group = analyse(run).group(0, STOCK)
    assert group.by_batch_size[0].exact_repeats_differ == 1
    assert group.statistics is not None
    assert (group.statistics.effective_trials, group.comparisons) == (4, 15)
    assert group.statistics.coverage == pytest.approx(15 / 16)


def test_a_bound_is_given_only_if_none_differed(planted_run: Callable[..., Run]) -> None:
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
