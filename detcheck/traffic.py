"""The load around the probed request: who shares its batch, in which order, arriving when.

A deterministic engine answers an identical trial identically, bit for bit, so a second repeat
tells nothing new. Trial 1 of a condition therefore repeats trial 0 exactly (and more trials do if
`Experiment.repeat_trial` says so); every later trial has
its own composition: other positions, other neighbours, other arrivals. The composition depends on
the load seed, prompt, batch size and trial. It never depends on the kernels or the seed, so that
all kernels and all wanted samples are computed under the same loads.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from detcheck.experiment import Experiment
from detcheck.grid import Condition, probes_per_trial

ARRIVAL_WINDOW_STEPS = 8
"""A staggered trial's requests arrive within this many forward passes of each other."""

FILLER_PROMPTS = (
    "Hi!",
    "What is 17 times 23?",
    "Name three rivers in Africa.",
    "Translate 'good morning' into French, German and Italian.",
    "Why is the sky blue?",
    "Write a haiku about rain on a tin roof.",
    "Give me a recipe for pancakes with exact quantities, please.",
    "List the planets of the solar system from the sun outwards, one a line.",
    "Explain to a ten-year-old how a bicycle stays upright when it is moving.",
    "What are the main differences between TCP and UDP, and when would you choose each of them?",
    "Summarise the plot of Romeo and Juliet in three sentences, without naming any character.",
    "Write a polite e-mail to a landlord asking for the heating to be repaired before the winter.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring and tests.",
    "Compare the climates of Lisbon and Helsinki over a year, and say what to pack for a visit to "
    "each of them in March.",
    "A train leaves Vienna at 9:15 at 120 km/h. Another leaves Salzburg, 300 km away, at 9:45 at "
    "140 km/h towards it. When and where do they meet? Explain every step of the calculation.",
    "You are the editor of a small town's newspaper. Write the opening paragraph of an article "
    "about the reopening of the public library after two years of renovation, mention the new "
    "reading room, the children's corner and the roof garden, and quote one visitor.",
    "Read the following list of ingredients and propose two different dinners that use most of "
    "them, with rough cooking times: chickpeas, spinach, two onions, garlic, a tin of tomatoes, "
    "cumin, rice, yoghurt, lemons, flat bread, olive oil, feta cheese, parsley, almonds, raisins.",
)
"""Requests that share the batch under `mixed` traffic, of other lengths and subjects."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a trial."""

    prompt: str
    is_probe: bool
    """If true, its completion is recorded; fillers only make load."""
    arrival_step: int
    """Forward pass of the trial at which it is submitted; ignored by engines in lockstep."""
    max_new_tokens: int
    seed: int = 0
    """Seed of its sampled tokens; without effect at temperature 0."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of requests submitted together, under one condition."""

    condition: Condition
    index: int
    requests: tuple[PlannedRequest, ...]

    @property
    def num_probes(self) -> int:
        """Completions that this trial records."""
        return sum(request.is_probe for request in self.requests)


def plan_trials(experiment: Experiment, condition: Condition) -> tuple[Trial, ...]:
    """The trials of a condition: together they probe exactly `condition.completions` times."""
    return tuple(iterate_trials(experiment, condition))


def iterate_trials(experiment: Experiment, condition: Condition, first: int = 0) -> Iterator[Trial]:
    """The same from trial `first` on, one at a time: there may be a million."""
    probes = probes_per_trial(condition.batch_size, experiment.traffic)
    for index in range(first, -(-condition.completions // probes)):
        yield _plan_trial(experiment, condition, index, condition.completions - index * probes)


def composition_of(index: int, repeat_trial: int) -> int:
    """The composition of load of trial `index`: the first `repeat_trial` trials share one."""
    return 0 if index < repeat_trial else index


def _plan_trial(experiment: Experiment, condition: Condition, index: int, left: int) -> Trial:
    composition = composition_of(index, experiment.repeat_trial)
    key = f"{experiment.load_seed}/{condition.prompt_index}/{condition.batch_size}/{composition}"
    rng = random.Random(key)
    prompt = experiment.prompts[condition.prompt_index]
    same = probes_per_trial(condition.batch_size, experiment.traffic)
    probes = min(same, left)
    requests = [(prompt, position < probes, experiment.max_new_tokens) for position in range(same)]
    for _ in range(condition.batch_size - same):
        length = rng.randint(max(1, experiment.max_new_tokens // 2), experiment.max_new_tokens)
        requests.append((rng.choice(FILLER_PROMPTS), False, length))
    if experiment.traffic == "mixed":
        rng.shuffle(requests)
    window = ARRIVAL_WINDOW_STEPS if composition and condition.batch_size > 1 else 1
    return Trial(
        condition,
        index,
        tuple(
            PlannedRequest(
                text,
                is_probe,
                rng.randrange(window),
                max_new_tokens,
                condition.seed if is_probe else rng.getrandbits(31),
            )
            for text, is_probe, max_new_tokens in requests
        ),
    )
