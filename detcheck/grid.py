"""The conditions that an experiment spans at a target, and each one's share of completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from detcheck.experiment import Experiment
from detcheck.targets.base import Target

REPEATS_OF_ONE = 3
"""Least completions of a batch of one: the first, and two exact repeats."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One cell of the grid."""

    prompt_index: int
    kernels: str
    batch_size: int
    completions: int
    """Completions asked for in this cell."""
    placement: str = ""
    """Where it is computed, such as `endpoint 2` or `tp3`; empty if there is only one place."""
    seed: int = 0
    """Seed of the wanted sample; without effect at temperature 0."""
    several_seeds: bool = False
    """If true, the seed is part of the condition's name."""
    choice: int = 0
    """0-based number of the choice; the conditions of one request's choices share its trials."""
    several_choices: bool = False
    """If true, the choice is part of the condition's name."""

    @property
    def condition_id(self) -> str:
        """Name of the cell within its run, such as `p0/stock/b4` or `p0/stock/b4/s1/tp2`."""
        seed = self.seed if self.several_seeds else None
        choice = self.choice if self.several_choices else None
        place = (self.prompt_index, self.kernels, self.batch_size, self.placement)
        return condition_id(*place, seed, choice)


def condition_id(
    prompt_index: int,
    kernels: str,
    batch_size: int,
    placement: str = "",
    seed: int | None = None,
    choice: int | None = None,
) -> str:
    """Name of a cell of the grid; `seed` and `choice` are None if the run has only one of them."""
    sample = "" if seed is None else f"/s{seed}"
    sample += "" if choice is None else f"/c{choice}"
    place = f"/{placement.replace(' ', '-')}" if placement else ""
    return f"p{prompt_index}/{kernels}/b{batch_size}{sample}{place}"


def conditions(experiment: Experiment, target: Target) -> tuple[Condition, ...]:
    """Every condition, in the order in which they are measured.

    Kernels, placements and seeds alternate within a batch size, so that a drift of the machine's
    speed falls on all of them, and the reference batch comes first. If changing the kernels or the
    placement loads the model anew (a trait of the target), these change last. The conditions of
    the choices of one request follow each other.
    """
    shares = share_completions(experiment.completions, experiment.batch_sizes, experiment.traffic)
    several = len(experiment.seeds) > 1
    choices = target.traits.choices
    return tuple(
        Condition(
            *(prompt_index, kernels, size, shares[size], placement, seed, several),
            choice=choice,
            several_choices=choices > 1,
        )
        for prompt_index, size, placement, seed, kernels in _cells(experiment, target)
        for choice in range(choices)
    )


def _cells(experiment: Experiment, target: Target) -> Iterator[tuple[int, int, str, int, str]]:
    """(prompt index, batch size, placement, seed, kernels) of every condition, in order."""
    prompts, sizes = range(len(experiment.prompts)), sorted(experiment.batch_sizes)
    kernels, seeds, placements = experiment.kernels, experiment.seeds, target.placements
    if not target.traits.reloads:
        yield from product(prompts, sizes, placements, seeds, kernels)
        return
    for placement, setting in product(placements, kernels):
        for prompt_index, size, seed in product(prompts, sizes, seeds):
            yield prompt_index, size, placement, seed, setting


def probes_per_trial(batch_size: int, traffic: str) -> int:
    """Requests of a batch that ask the prompt; the others are fillers."""
    return batch_size if traffic == "alone" else max(1, batch_size // 2)


def sequences_per_trial(batch_size: int, traffic: str, choices: int) -> int:
    """Sequences that a server computes together in a whole batch: fillers ask for one choice."""
    probes = probes_per_trial(batch_size, traffic)
    return batch_size + probes * (choices - 1)


def share_completions(
    completions: int, batch_sizes: tuple[int, ...], traffic: str
) -> dict[int, int]:
    """Completions by batch size; they sum to `completions`, in whole batches as far as possible.

    Each batch size gets an even share. Only a batch of one, in which nothing can vary, gets a few
    (enough to show that it repeats) and the rest that fills no whole batch elsewhere.
    """
    sizes = sorted(batch_sizes, reverse=True)
    shares: dict[int, int] = {}
    left = completions
    for rank, batch_size in enumerate(sizes):
        probes = probes_per_trial(batch_size, traffic)
        others = len(sizes) - rank - 1
        if others == 0:
            shares[batch_size] = left
            break
        single = REPEATS_OF_ONE if sizes[-1] == 1 else 0
        sharing = others + 1 - (1 if single else 0)
        even = (left - single) / sharing
        trials = max(1, round(even / probes))
        if trials > 1 and trials * probes > left - others - (1 if single else 0):
            trials -= 1  # a batch of one keeps at least two: one exact repeat
        shares[batch_size] = max(1, min(trials * probes, left - others))
        left -= shares[batch_size]
    return shares
