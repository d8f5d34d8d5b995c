"""Two runs side by side: which conditions agree, and where their references part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detcheck.analysis.divergence import two_ways
from detcheck.analysis.results import Analysis, Group
from detcheck.completion import first_divergence
from detcheck.environment import differences
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.rundir import Run, StoredVariant
from detcheck.text import quoted

WORDS_BEFORE = 6
WORDS_AFTER = 5
"""Tokens shown before and after a parting."""
DECISIVE = (
    "model",
    "engine",
    "traffic",
    "arrivals",
    "endpoints",
    "tensor_parallel",
    "vllm_executor",
    "dtype",
    "device",
    "max_new_tokens",
    "temperature",
    "seed",
    "chat_template",
)
"""Fields of an experiment that can change its answers or its load."""


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two answers part, in words."""

    position: int
    """First token at which they differ (character, where one has no token ids)."""
    unit: str
    """`token` or `character`."""
    context: str
    """Text both share just before."""
    left: str
    """The next words of the first; empty where it ends."""
    right: str
    """The next words of the second; empty where it ends."""

    @property
    def sentence(self) -> str:
        """`they part at token 32, after "…": "coastal town" / ", coastal town"`."""
        ways = two_ways(self.context, self.left, self.right)
        return f"they part at {self.unit} {self.position}{ways}"


@dataclass(frozen=True, slots=True)
class GroupPair:
    """One prompt in both runs, each under one kernels setting."""

    prompt: str
    left: Group
    right: Group
    shared: int
    """Distinct answers that both runs gave."""
    agreement: float | None
    """Chance that one completion of each are equal; None where one gave nothing."""
    parting: Parting | None
    """Where the references part; None where they are equal, or one gave nothing."""

    @property
    def references_equal(self) -> bool:
        """Whether both runs have the same reference answer."""
        return None not in (self.left.reference, self.right.reference) and self.parting is None


@dataclass(frozen=True, slots=True)
class ConditionPair:
    """The same prompt, kernels, batch size and placement in both runs."""

    prompt: str
    kernels: str
    batch_size: int
    agreement: float | None
    """Chance that one completion of each are equal; None where one gave nothing."""
    placement: str = ""
    """Empty where the grid has only one place."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs have in common and what not."""

    left: Run
    right: Run
    pairs: tuple[GroupPair, ...]
    conditions: tuple[ConditionPair, ...]
    only_left: tuple[str, ...]
    """Prompts that only the first run has."""
    only_right: tuple[str, ...]
    experiment_differences: tuple[str, ...]
    environment_differences: tuple[str, ...]


def parting(left: StoredVariant, right: StoredVariant) -> Parting | None:
    """Where two answers part; None where they are the same.

    By tokens where both have them, by characters of the text otherwise.
    """
    if left.token_ids is None or right.token_ids is None:
        return _parting_of_text(left.text, right.text)
    position = first_divergence(left.token_ids.tolist(), right.token_ids.tolist())
    if position is None:
        return None
    stop = position + WORDS_AFTER
    return Parting(
        position,
        "token",
        left.piece(max(0, position - WORDS_BEFORE), position),
        left.piece(position, stop),
        right.piece(position, stop),
    )


def compare(left: Analysis, right: Analysis) -> Comparison:
    """Hold two runs side by side; raises UsageError where they have no prompt in common."""
    ours, theirs = left.run.experiment, right.run.experiment
    common = [prompt for prompt in ours.prompts if prompt in theirs.prompts]
    if not common:
        raise UsageError(
            f"{left.run.path} and {right.run.path} have no prompt in common: nothing to compare."
        )
    return Comparison(
        left=left.run,
        right=right.run,
        pairs=tuple(pair for prompt in common for pair in _group_pairs(left, right, prompt)),
        conditions=tuple(_condition_pairs(left.run, right.run)),
        only_left=tuple(prompt for prompt in ours.prompts if prompt not in common),
        only_right=tuple(prompt for prompt in theirs.prompts if prompt not in common),
        experiment_differences=tuple(experiment_differences(ours, theirs)),
        environment_differences=tuple(differences(left.run.environment, right.run.environment)),
    )


def experiment_differences(left: Experiment, right: Experiment) -> list[str]:
    """Settings of two experiments that can change an answer and differ, a phrase each."""
    pairs = ((name, getattr(left, name), getattr(right, name)) for name in DECISIVE)
    return [
        f"{name.replace('_', ' ')} {in_words(ours)} → {in_words(theirs)}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def in_words(setting: object) -> str:
    """The value of a setting of an experiment as a person reads it."""
    if isinstance(setting, str):
        return quoted(setting)
    if isinstance(setting, tuple):
        return ", ".join(map(str, setting)) or "none"
    if isinstance(setting, bool):
        return "on" if setting else "off"
    return "the embedded model" if setting is None else str(setting)


def groups_of(analysis: Analysis, prompt: str) -> dict[str, Group]:
    """The groups of one prompt, by kernels."""
    return {group.kernels: group for group in analysis.groups if group.prompt == prompt}


def _group_pairs(left: Analysis, right: Analysis, prompt: str) -> Iterator[GroupPair]:
    """Pairs with the same kernels; every pair where the runs have none in common."""
    ours, theirs = groups_of(left, prompt), groups_of(right, prompt)
    shared = [kernels for kernels in ours if kernels in theirs]
    names = [(name, name) for name in shared] or [(a, b) for a in ours for b in theirs]
    for ours_name, theirs_name in names:
        yield _pair(prompt, ours[ours_name], theirs[theirs_name])


def _pair(prompt: str, left: Group, right: Group) -> GroupPair:
    ours = {count.variant.fingerprint: count.count for count in left.variants}
    theirs = {count.variant.fingerprint: count.count for count in right.variants}
    apart = None
    if left.reference is not None and right.reference is not None:
        apart = parting(left.reference.variant, right.reference.variant)
    return GroupPair(
        prompt, left, right, len(ours.keys() & theirs.keys()), _agreement(ours, theirs), apart
    )


def _condition_pairs(left: Run, right: Run) -> Iterator[ConditionPair]:
    ours, theirs = _counts_by_condition(left), _counts_by_condition(right)
    for key, counts in ours.items():
        other = theirs.get(key)
        if other is not None:
            prompt, kernels, batch_size, placement = key
            agreement = _agreement(counts, other)
            yield ConditionPair(prompt, kernels, batch_size, agreement, placement)


def _counts_by_condition(run: Run) -> dict[tuple[str, str, int, str], dict[str, int]]:
    """How often each answer came back, by (prompt, kernels, batch size, placement)."""
    prompts = run.experiment.prompts
    return {
        (
            prompts[record.prompt_index],
            record.kernels,
            record.batch_size,
            record.placement,
        ): _counts(run, index)
        for index, record in enumerate(run.conditions)
    }


def _counts(run: Run, condition: int) -> dict[str, int]:
    table = run.completions
    seen = table.variant[(table.condition == condition) & (table.variant >= 0)]
    indices, counts = np.unique(seen, return_counts=True)
    return {
        run.variants[int(index)].fingerprint: int(count)
        for index, count in zip(indices, counts, strict=True)
    }


def _agreement(left: dict[str, int], right: dict[str, int]) -> float | None:
    pairs = sum(left.values()) * sum(right.values())
    if pairs == 0:
        return None
    return sum(count * right.get(key, 0) for key, count in left.items()) / pairs


def _parting_of_text(left: str, right: str) -> Parting | None:
    position = first_divergence(left, right)
    if position is None:
        return None
    before, stop = max(0, position - 30), position + 25
    return Parting(
        position, "character", left[before:position], left[position:stop], right[position:stop]
    )
