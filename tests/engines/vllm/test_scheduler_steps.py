"""Only the steps that vLLM's scheduler reports become evidence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from detcheck.engines.partial import PartialCompletion
from detcheck.engines.vllm.scheduler_steps import SchedulerSteps
from detcheck.engines.vllm.worker import _append
from detcheck.evidence import LoadEvidence


def scheduler(details: Any, hits: int = 0) -> Any:
    return SimpleNamespace(iteration_details=details, prefix_cache_stats=SimpleNamespace(hits=hits))


def step(prefills: int, prefill_tokens: int, decodes: int, *, is_dummy: bool = False) -> Any:
    return SimpleNamespace(
        num_ctx_requests=prefills,
        num_ctx_tokens=prefill_tokens,
        num_generation_requests=decodes,
        num_generation_tokens=decodes,
        is_dummy=is_dummy,
    )


def iteration(preempted: int = 0) -> Any:
    return SimpleNamespace(num_preempted_reqs=preempted)


def test_steps_are_summed_up():
    steps = SchedulerSteps()
    steps.record(scheduler(step(3, 90, 0), hits=16), iteration())
    assert steps.last == (3, 90)
    steps.record(scheduler(step(1, 30, 3)), iteration(preempted=1))
    steps.record(scheduler(step(0, 0, 4)), iteration())
    assert steps.evidence() == LoadEvidence("forward passes", 4, round(11 / 3, 3), 90, 1, 16)


def test_a_step_without_details_or_without_requests_is_no_evidence():
    steps = SchedulerSteps()
    steps.record(None, None)
    steps.record(scheduler(None), iteration())
    steps.record(scheduler(step(0, 0, 8, is_dummy=True)), iteration())
    steps.record(scheduler(step(0, 0, 0)), iteration())
    assert steps.last is None
    assert steps.evidence() is None


def test_a_trial_starts_anew():
    steps = SchedulerSteps()
    steps.record(scheduler(step(0, 0, 8)), iteration(preempted=1))
    steps.reset()
    assert steps.evidence() is None


def logprobs(**values: float) -> dict[int, Any]:
    return {int(name[1:]): SimpleNamespace(logprob=value) for name, value in values.items()}


def test_the_runner_up_is_the_best_other_token_and_the_lowest_among_equals():
    partial = PartialCompletion(4)
    _append(partial, 7, logprobs(t7=-0.5, t3=-0.75))
    _append(partial, 7, logprobs(t7=-0.5, t9=-0.5))
    _append(partial, 7, logprobs(t7=-1.0, t9=-0.5, t4=-0.5))
    assert partial.token_ids == [7, 7, 7]
    assert partial.runner_up_token_ids == [3, 9, 4]
    assert partial.gaps == [0.25, 0.0, 0.0]
    assert partial.logprobs == [-0.5, -0.5, -1.0]
