"""Noise is measured or unknown: pooled over prompts and conditions, never assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from recorded import record, small_experiment

from detcheck.analysis import analyse
from detcheck.analysis.noise import MIN_POSITIONS, SAFETY, NoiseSample, pooled
from detcheck.analysis.results import CONFIDENT, NEAR_TIE, UNKNOWN, Analysis
from detcheck.completion import Completion
from detcheck.engines.scripted import Planted
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.rundir import Run
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer


def sample(changes: Sequence[float], positions: int = 100) -> NoiseSample:
    return NoiseSample(np.asarray(changes, dtype=np.float32), positions)


def test_noise_is_unknown_if_nothing_was_measured() -> None:
    assert pooled([]).gap is None
    assert pooled([sample([], 0)]).gap is None


@pytest.mark.parametrize("change", [0.0, 0.25])
def test_noise_over_too_few_positions_is_unknown(change: float) -> None:
    assert pooled([sample([change], MIN_POSITIONS - 1)]).gap is None
    assert pooled([sample([change], MIN_POSITIONS)]).gap == SAFETY * change


def test_noise_is_zero_if_every_load_was_bitwise_equal() -> None:
    assert pooled([sample([0, 0])]).gap == 0.0


def test_bitwise_equal_completions_do_not_dilute_the_noise() -> None:
    assert pooled([sample([0.0] * 90 + [0.25] * 10)]).gap == SAFETY * 0.25


def test_prompts_are_pooled() -> None:
    noise = pooled([sample([0.0] * 5, 2), sample([0.25], 3), sample([0.5, 0.5], 1)])
    assert (noise.gap, noise.positions) == (SAFETY * 0.5, 6)


def test_a_fault_in_some_completions_does_not_set_the_limit() -> None:
    rng = np.random.default_rng(0)
    honest, faulty = rng.uniform(0.09, 0.11, 600), rng.uniform(3.0, 9.0, 400)
    found = pooled([sample([*honest, *faulty, *[0.0] * 500])]).gap
    assert found is not None
    assert 0.09 * SAFETY <= found <= 0.11 * SAFETY


def analysed(path: Path, respond: Callable[[Trial, int], Completion], **fields: object) -> Analysis:
    """`respond` answers twelve requests of each prompt, alone and in batches of four."""
    defaults = {"kernels": (STOCK,), "batch_sizes": (1, 4), "completions": 12}
    return analyse(record(path, AnsweringEngine(respond), small_experiment(**(defaults | fields))))


def parts_at(position: int, gap: float) -> Callable[[Trial, int], Completion]:
    """In a batch every answer goes another way at `position`, and before it no gap moves."""

    def respond(trial: Trial, _: int) -> Completion:
        token_ids, gaps = list(range(24)), [2.0] * 24
        gaps[position] = gap
        if trial.condition.batch_size > 1:
            token_ids[position:] = [100 + token for token in token_ids[position:]]
        return answer(token_ids, gaps=gaps)

    return respond


@pytest.mark.parametrize(
    ("position", "kind"),
    [(0, UNKNOWN), (1, UNKNOWN), (MIN_POSITIONS - 1, UNKNOWN), (MIN_POSITIONS, CONFIDENT)],
)
def test_if_all_diverge_before_noise_could_be_seen_the_kind_is_unknown(
    tmp_path: Path, position: int, kind: str
) -> None:
    [group] = analysed(tmp_path / "run", parts_at(position, gap=0.6)).groups
    assert (group.noise, group.noise_positions) == (None if kind == UNKNOWN else 0.0, position)
    assert group.flips[kind] == group.distinct - 1 == 1


def test_another_prompt_of_the_same_kernels_supplies_the_noise(tmp_path: Path) -> None:
    """The first prompt diverges at token 0 under load; the second only moves by 0.5 there."""

    def respond(trial: Trial, position: int) -> Completion:
        if trial.requests[position].prompt == "One?":
            return parts_at(0, gap=0.6)(trial, position)
        moved = 0.5 if trial.condition.batch_size > 1 else 0.0
        return answer(range(24), gaps=[2.0 + moved] * 24)

    analysis = analysed(tmp_path / "run", respond, prompts=("One?", "Two?"))
    assert [group.noise for group in analysis.groups] == [SAFETY * 0.5] * 2
    assert analysis.group(0, STOCK).flips[NEAR_TIE] == 1


def test_another_prompt_that_did_not_move_says_nothing_about_this_one(tmp_path: Path) -> None:
    """The first prompt diverges at token 0 under load; no gap of the second ever moves."""

    def respond(trial: Trial, position: int) -> Completion:
        if trial.requests[position].prompt == "One?":
            return parts_at(0, gap=0.6)(trial, position)
        return parts_at(9, gap=0.6)(trial, position)

    analysis = analysed(tmp_path / "run", respond, prompts=("One?", "Two?"))
    assert [group.noise for group in analysis.groups] == [None, 0.0]
    assert analysis.group(0, STOCK).flips[UNKNOWN] == 1
    assert analysis.group(1, STOCK).flips[CONFIDENT] == 1


@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.7, "seeds": (0, 1)}])
def test_if_only_some_loads_diverge_at_token_0_the_others_measure_the_noise(
    tmp_path: Path, sampled: dict[str, object]
) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        moved = 0.0 if trial.condition.batch_size == 1 else 0.4
        if trial.condition.batch_size == 8:
            return answer([99, *range(1, 24)], gaps=[0.6] * 24)
        return answer(range(24), gaps=[0.6 + moved] * 24)

    [group] = analysed(
        tmp_path / "run", respond, batch_sizes=(1, 4, 8), completions=24, **sampled
    ).groups
    assert group.noise == pytest.approx(SAFETY * 0.4)
    assert group.flips[NEAR_TIE] == len(group.by_seed)


def test_other_kernels_do_not_supply_it(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        if trial.condition.kernels == STOCK:
            moved = 0.5 if trial.condition.batch_size > 1 else 0.0
            return answer(range(24), gaps=[2.0 + moved] * 24)
        return parts_at(0, gap=0.6)(trial, position)

    analysis = analysed(tmp_path / "run", respond, kernels=(STOCK, BATCH_INVARIANT))
    stock, invariant = analysis.groups
    assert (stock.noise, invariant.noise) == (SAFETY * 0.5, None)
    assert invariant.flips[UNKNOWN] == 1


def test_exact_repeats_of_one_load_measure_nothing(tmp_path: Path) -> None:
    """One batch size and two trials, of which the second repeats the first: no load moved."""

    def alone(trial: Trial, position: int) -> Completion:
        return answer(range(24), gaps=[2.0] * 24)

    [group] = analysed(tmp_path / "run", alone, batch_sizes=(1,), completions=2).groups
    assert (group.noise, group.noise_positions) == (None, 0)


def test_noise_between_repeats_of_one_load_is_noise(planted_run: Callable[..., Run]) -> None:
    """A server that rounds differently each time moves gaps without any change of load."""

    run = planted_run(kernels=(STOCK,), batch_sizes=(1,), completions=8, engine={"noise": 0.1})
    [group] = analyse(run).groups
    assert group.noise is not None
    assert 0 < group.noise <= SAFETY * 0.2


def test_the_change_at_a_flip_is_not_part_of_the_noise(planted_run: Callable[..., Run]) -> None:
    """At the planted token the gap drops from 2 to 1.5: that change is not part of the noise."""
    run = planted_run(Planted(9, 2, gap=1.5), engine={"noise": 0.01})
    group = analyse(run).group(0, STOCK)
    assert group.noise is not None
    assert group.noise <= SAFETY * 0.02
    assert group.flips[CONFIDENT] == 1
