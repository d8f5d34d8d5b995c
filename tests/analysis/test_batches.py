from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from recorded import record, small_experiment

from detcheck.analysis import analyse
from detcheck.analysis.batches import evidence
from detcheck.completion import Completion
from detcheck.engines.scripted import Planted
from detcheck.experiment import Experiment
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.rundir import ConditionRecord, Run
from detcheck.targets import Served
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer


def condition(batch_size: int, rows_max: int) -> ConditionRecord:
    return ConditionRecord("p0/stock/b", 0, STOCK, batch_size, 8, rows_max=rows_max)


@pytest.mark.parametrize(
    ("seen", "observed", "sentence"),
    [
        (
            {1: 1, 16: 16},
            True,
            "batches of up to 16 of 16 asked, counted over forward passes",
        ),
        ({1: 0, 16: 0}, False, "no batches were observed"),
        ({1: 1, 16: 7}, False, "batches of up to 7 where 16 were asked"),
        ({8: 3, 16: 16}, False, "batches of up to 3 where 8 were asked"),
        ({1: 1, 16: 0}, False, "no batches were observed where 16 were asked"),
    ],
)
def test_evidence_needs_every_batch_in_full(
    seen: dict[int, int], observed: bool, sentence: str
) -> None:
    found = evidence([condition(batch_size, rows) for batch_size, rows in seen.items()])
    assert (found.observed, found.sentence) == (observed, sentence)
    assert (found.asked_max, found.observed_max) == (max(seen), max(seen.values()))


@pytest.mark.parametrize(
    ("rows_max", "rows_mean", "shared"),
    [(8, 7.9, False), (8, None, False), (9, None, True), (8, 8.4, False), (8, 9.4, True)],
)
def test_more_requests_than_were_sent_are_other_clients(
    rows_max: int, rows_mean: float | None, shared: bool
) -> None:
    record = msgspec.structs.replace(condition(8, rows_max), rows_mean=rows_mean)
    assert ("other clients' requests among them" in evidence([record]).sentence) is shared


def test_batches_that_were_not_formed_show(planted_run: Callable[..., Run]) -> None:
    group = analyse(planted_run(engine={"observed_share": 0.5})).group(0, STOCK)
    assert not group.evidence.observed
    assert group.evidence.observed_max == 8
    assert [row.observed_rows_max for row in group.by_batch_size] == [1, 2, 4, 8]
    assert [row.observed_rows_mean for row in group.by_batch_size] == [1.0, 2.0, 4.0, 8.0]


def test_unobserved_batches_have_no_mean(tmp_path: Path) -> None:
    engine = AnsweringEngine(lambda trial, position: answer([1, 2]))
    group = analyse(record(tmp_path / "run", engine)).group(0, STOCK)
    assert {row.observed_rows_mean for row in group.by_batch_size} == {None}
    assert group.evidence.sentence == "no batches were observed"


def test_rows_count_what_was_planted(planted_run: Callable[..., Run]) -> None:
    group = analyse(planted_run(Planted(5, 3, min_batch_size=8))).group(0, STOCK)
    counted = [
        (row.batch_size, row.distinct, row.most_common, row.differ_from_reference)
        for row in group.by_batch_size
    ]
    sizes = {row.batch_size: row.completions for row in group.by_batch_size}
    assert counted == [
        (1, 1, sizes[1], 0),
        (4, 1, sizes[4], 0),
        (8, 1, sizes[8], sizes[8]),
        (16, 1, sizes[16], sizes[16]),
    ]
    assert sum(sizes.values()) == group.completions == group.asked == 64


def seconds(trial: Trial) -> float:
    """Stock needs 1 s a token; batch-invariant 1.5 s, and 3 s where the batch is 4."""
    factor = {1: 1.5, 2: 1.5, 4: 3.0}[trial.condition.batch_size]
    return 2 * trial.num_probes * (1.0 if trial.condition.kernels == STOCK else factor)


def two_tokens(trial: Trial, position: int) -> Completion:
    return answer([1, 2])


def test_cost_is_time_a_token_against_stock(tmp_path: Path) -> None:
    experiment = small_experiment(batch_sizes=(2, 4), completions=16)
    run = record(tmp_path / "run", AnsweringEngine(two_tokens, seconds), experiment)
    stock, invariant = analyse(run).groups
    assert stock.relative_cost is None
    assert {row.relative_cost for row in stock.by_batch_size} == {None}
    assert [row.relative_cost for row in invariant.by_batch_size] == [1.5, 3.0]
    twos, fours = (row.completions for row in invariant.by_batch_size)
    assert invariant.relative_cost is not None
    assert invariant.relative_cost == pytest.approx((1.5 * twos + 3 * fours) / (twos + fours))
    assert invariant.tokens_per_second == pytest.approx(1 / invariant.relative_cost)
    assert stock.tokens_per_second == pytest.approx(1.0)


def test_cost_is_compared_only_where_both_were_timed(tmp_path: Path) -> None:
    """Interrupted after the batch of 1 under both kernels, and the batch of 4 under stock."""
    experiment = small_experiment(batch_sizes=(1, 4), completions=7)
    engine = AnsweringEngine(two_tokens, seconds)
    run = record(tmp_path / "run", engine, experiment, limit=3 + 3 + 1)
    assert [record.trials for record in run.conditions] == [3, 3, 1, 0]
    group = analyse(run).group(0, BATCH_INVARIANT)
    assert [row.relative_cost for row in group.by_batch_size] == [1.5, None]
    assert group.relative_cost == 1.5


def test_cost_without_stock_is_unknown(planted_run: Callable[..., Run]) -> None:
    group = analyse(planted_run(kernels=(BATCH_INVARIANT,))).group(0, BATCH_INVARIANT)
    assert group.relative_cost is None
    assert {row.relative_cost for row in group.by_batch_size} == {None}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [("tokens", 2), ("logprobs", 2), ("nothing", 0), ("failed", 0), ("no logprobs", 0)],
)
def test_exact_repeats_are_compared_request_by_request(
    tmp_path: Path, changed: str, expected: int
) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        odd = trial.index == 1 and position < 2
        if odd and changed == "failed":
            return Completion("", "error", error="gone")
        token = 9 if odd and changed == "tokens" else position
        gap = 0.5 if odd and changed == "logprobs" else 0.25
        return answer([1, token], gaps=None if odd and changed == "no logprobs" else [2.0, gap])

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(4,), completions=12)
    run = record(tmp_path / "run", AnsweringEngine(respond), experiment)
    row = analyse(run).group(0, STOCK).by_batch_size[0]
    assert row.exact_repeats_differ == expected


def test_without_a_second_trial_repeats_are_unknown(planted_run: Callable[..., Run]) -> None:
    run = planted_run(kernels=(STOCK,), batch_sizes=(4,), completions=4)
    assert analyse(run).group(0, STOCK).by_batch_size[0].exact_repeats_differ is None


def third_trial_differs(trial: Trial, position: int) -> Completion:
    """Of three equal trials, two requests of the third get another answer."""
    return answer([1, 9 if trial.index == 2 and position < 2 else 2])


@pytest.mark.parametrize(("repeat_trial", "differ"), [(1, None), (2, 0), (3, 2), (9, 2)])
def test_every_repeat_of_a_trial_is_compared_with_it(
    tmp_path: Path, repeat_trial: int, differ: int | None
) -> None:
    experiment = small_experiment(
        kernels=(STOCK,), batch_sizes=(4,), completions=16, repeat_trial=repeat_trial
    )
    run = record(tmp_path / "run", AnsweringEngine(third_trial_differs), experiment)
    group = analyse(run).group(0, STOCK)
    assert (group.repeats_differ, group.exact_repeats_differ) == (differ, differ)


def test_of_a_server_repeats_are_compared_though_they_are_not_exact(tmp_path: Path) -> None:
    target = Served(endpoints=("http://one/v1",))
    experiment = target.settle(
        Experiment(batch_sizes=(4,), completions=16, repeat_trial=3, kernels=("as-served",))
    )
    engine = AnsweringEngine(third_trial_differs)
    [group] = analyse(record(tmp_path / "run", engine, experiment, target=target)).groups
    assert (group.repeats_differ, group.exact_repeats_differ) == (2, None)
