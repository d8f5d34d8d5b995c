from __future__ import annotations

import pytest
from asking import conditions_of, settled
from hypothesis import given
from hypothesis import strategies as st

from detcheck.experiment import Experiment
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.traffic import ARRIVAL_WINDOW_STEPS, FILLER_PROMPTS, Trial, plan_trials

PROMPT = "Why?"


def experiment(**fields: object) -> Experiment:
    return settled(**({"prompts": (PROMPT,), "completions": 64} | fields))


def trials(grid: Experiment, batch_size: int, kernels: str = STOCK) -> tuple[Trial, ...]:
    condition = next(
        condition
        for condition in conditions_of(grid)
        if (condition.batch_size, condition.kernels) == (batch_size, kernels)
    )
    return plan_trials(grid, condition)


@given(st.integers(16, 200), st.sampled_from(["alone", "mixed"]), st.integers(0, 99))
def test_a_condition_is_probed_exactly_as_often_as_asked(
    completions: int, traffic: str, seed: int
) -> None:
    grid = experiment(completions=completions, traffic=traffic, load_seed=seed)
    for condition in conditions_of(grid):
        planned = plan_trials(grid, condition)
        assert sum(trial.num_probes for trial in planned) == condition.completions
        assert [trial.index for trial in planned] == list(range(len(planned)))
        assert {len(trial.requests) for trial in planned} == {condition.batch_size}


def test_only_probes_of_the_prompt_are_recorded() -> None:
    for trial in trials(experiment(traffic="mixed"), 16):
        assert all(request.prompt == PROMPT for request in trial.requests if request.is_probe)


def test_alone_the_batch_holds_copies_of_the_prompt() -> None:
    for trial in trials(experiment(completions=50), 16):
        assert {request.prompt for request in trial.requests} == {PROMPT}


def test_mixed_the_probe_sits_among_others_at_varying_positions() -> None:
    planned = trials(experiment(traffic="mixed"), 8)
    for trial in planned:
        fillers = [request for request in trial.requests if request.prompt != PROMPT]
        assert len(fillers) == 4
        assert all(request.prompt in FILLER_PROMPTS for request in fillers)
        assert all(50 <= request.max_new_tokens <= 100 for request in fillers)
    places = {
        tuple(position for position, request in enumerate(trial.requests) if request.is_probe)
        for trial in planned
    }
    assert len(places) > 1


def test_the_second_trial_repeats_the_first_and_no_other_does() -> None:
    planned = trials(experiment(completions=200), 8)
    assert planned[1].requests == planned[0].requests
    assert all(trial.requests != planned[0].requests for trial in planned[2:])
    assert len({trial.requests for trial in planned[2:]}) == len(planned) - 2


def test_the_first_trial_arrives_together_and_others_do_not() -> None:
    first, _, *later = trials(experiment(completions=200), 8)
    assert {request.arrival_step for request in first.requests} == {0}
    steps = {request.arrival_step for trial in later for request in trial.requests}
    assert steps == set(range(ARRIVAL_WINDOW_STEPS))


def test_a_batch_of_one_has_one_composition() -> None:
    for traffic in ("alone", "mixed"):
        planned = trials(experiment(traffic=traffic), 1)
        assert len(planned) > 2
        assert len({trial.requests for trial in planned}) == 1


@pytest.mark.parametrize("traffic", ["alone", "mixed"])
def test_both_kernels_face_the_same_load(traffic: str) -> None:
    grid = experiment(traffic=traffic)
    for batch_size in grid.batch_sizes:
        stock = trials(grid, batch_size)
        invariant = trials(grid, batch_size, BATCH_INVARIANT)
        assert [t.requests for t in stock] == [t.requests for t in invariant]


def test_another_load_seed_is_another_load() -> None:
    one, other = (trials(experiment(traffic="mixed", load_seed=seed), 8) for seed in (0, 1))
    assert one[0].requests != other[0].requests
    assert one == trials(experiment(traffic="mixed", load_seed=0), 8)


def test_another_seed_is_the_same_load_with_other_samples() -> None:
    grid = experiment(traffic="mixed", temperature=0.7, seeds=(3, 4))
    by_seed = {
        condition.seed: plan_trials(grid, condition)
        for condition in conditions_of(grid)
        if (condition.batch_size, condition.kernels) == (8, STOCK)
    }
    plans = [
        [(r.prompt, r.arrival_step, r.is_probe) for trial in planned for r in trial.requests]
        for planned in by_seed.values()
    ]
    assert plans[0] == plans[1]
    for seed, planned in by_seed.items():
        probes = {r.seed for trial in planned for r in trial.requests if r.is_probe}
        assert probes == {seed}


def test_the_first_trial_is_repeated_as_often_as_asked() -> None:
    planned = trials(experiment(traffic="mixed", repeat_trial=4), 8)
    assert all(trial.requests == planned[0].requests for trial in planned[:4])
    assert planned[4].requests != planned[0].requests
