"""What the statistics promise of an endpoint holds: over many runs, against a planted rate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking import ask
from scipy.stats import binom
from servers.faults import Faults
from servers.running import serve

import detcheck
from detcheck.engines import Connection, open_engine
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.evidence import EndpointCheck, KernelsProof
from detcheck.experiment import Experiment
from detcheck.gate import PASS, judge
from detcheck.targets import Target
from detcheck.traffic import Trial

pytestmark = pytest.mark.slow

FALSE_ALARM = 1e-6
"""Probability that a right program fails one of these tests, had the draws not been fixed."""
TINY = {"quiet_s": 0.004, "answer_tokens": 4}


class Kept:
    """An engine that several runs share: its questions are asked once, and it stays open."""

    def __init__(self, experiment: Experiment, target: Target):
        self.engine = open_engine(experiment, target, Connection().within(10.0))

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        return self.engine.run_trial(trial, on_tokens)

    def proof(self, kernels: str) -> KernelsProof:
        return self.engine.proof(kernels)

    def endpoint_checks(self) -> tuple[EndpointCheck, ...]:
        return ()

    def close(self) -> None:
        """Not yet."""


def tolerance(probability: float, trials: int) -> range:
    """Counts that all but `FALSE_ALARM` of binomial draws fall into."""
    low = int(binom.ppf(FALSE_ALARM / 2, trials, probability))
    high = int(binom.isf(FALSE_ALARM / 2, trials, probability))
    return range(low, high + 1)


def runs(experiment: Experiment, target: Target, number: int, folder) -> Iterator[detcheck.Run]:
    """So many runs of one experiment against one server."""
    kept = Kept(experiment, target)
    try:
        for index in range(number):
            yield detcheck.run(experiment, target, folder / str(index), engine=kept)
    finally:
        kept.engine.close()


@pytest.mark.parametrize(("rate", "number"), [(0.02, 200), (0.08, 200)])
def test_a_rate_of_wrong_answers_is_found_as_often_as_promised(tmp_path, rate, number):
    """A rate q shows in N answers with probability 1 - (1 - q)^N (all N wrong: next to never)."""
    completions = 15
    found = 0
    faults = Faults(**TINY, flip_at=1, flip_above=0, flip_rate=rate)
    with serve(faults) as served:
        experiment, target = ask(
            endpoints=[served.url],
            batch_sizes=(1, 12),
            completions=completions,
            max_new_tokens=4,
        )
        counters, before = served.server.engine.counters, -1
        for run in runs(experiment, target, number, tmp_path):
            group = detcheck.analyse(run).groups[0]
            assert group.completions == completions
            planted = counters.flipped - before
            if before >= 0:  # the first run's count holds the questions before it
                assert (group.distinct > 1) == (0 < planted < completions)
            before = counters.flipped
            found += group.distinct > 1
    expected = 1 - (1 - rate) ** completions
    assert found in tolerance(expected, number), f"{found} of {number}, {expected:.2f} promised"


def test_the_tolerance_tells_a_wrong_rate():
    """The twin: had detcheck seen half of the answers only, the test above would have failed."""
    for rate, number in ((0.02, 200), (0.08, 200)):
        half = 1 - (1 - rate) ** 2
        assert round(number * half) not in tolerance(1 - (1 - rate) ** 15, number)


def test_no_false_alarm_in_a_thousand_clean_trials(tmp_path):
    """Batches that differ in everything but the answer: noise, preemption, a warm prefix cache."""
    faults = Faults(**TINY, noise=0.01, preempt_every=3)
    with serve(faults) as served:
        experiment, target = ask(
            endpoints=[served.url],
            batch_sizes=(1, 8),
            completions=3 + 8 * 997,
            max_new_tokens=4,
        )
        connection = Connection().within(10.0)
        run = detcheck.run(experiment, target, tmp_path / "run", connection=connection)
    analysis = detcheck.analyse(run)
    assert sum(record.trials for record in run.conditions) == 1000
    assert analysis.groups[0].distinct == 1
    verdict = judge(analysis)
    assert verdict.value == PASS, verdict.reasons
