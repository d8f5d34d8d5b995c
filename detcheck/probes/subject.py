"""The request whose divergence is looked into: of a run, or of a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detcheck.analysis import analyse
from detcheck.analysis.results import Divergence, Group
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.kernels.settings import STOCK
from detcheck.rundir import Run
from detcheck.targets import Target
from detcheck.traffic import Trial, plan_trials


@dataclass(frozen=True, slots=True)
class Subject:
    """One request of one trial, to be compared with the same request alone."""

    experiment: Experiment
    target: Target
    trial: Trial
    request: int
    """Its position in the trial."""
    num_tokens: int
    """Most tokens to replay."""


def subject_of_run(run: Run, prompt_index: int | None = None) -> Subject:
    """The request of a run that diverges from its reference at the earliest token.

    Both replays find the prefix cache in one state, cold or warm. Raises UsageError if no answers
    diverge, if they diverge between these states only, or if no engine in this process can replay
    the run.
    """
    if not run.traits.ops_visible:
        raise UsageError(
            f"The run was measured by the engine {run.target.engine!r}, which has no ops to "
            "trace: trace a run of the continuous or static engine, or have a script that asks a "
            'server again written by `repro="DIR"`.'
        )
    return _at_one_place(
        run,
        prompt_index,
        "only between a cold and a warm prefix cache, and a trace compares loads: measure it with "
        '`kernels="fully-invariant"`, which hold the answer there too, or look for the ops in the '
        "column of `detcheck ops` for the prefix cache.",
    )[0]


def subject_of(run: Run, prompt_index: int | None = None) -> tuple[Subject, Divergence]:
    """As `subject_of_run` for any target, with the divergence itself."""
    group, seed, divergence = _earliest(run, prompt_index)
    variant = next(i for i, v in enumerate(run.variants) if v is divergence.variant)
    table = run.completions
    for row in range(len(table)):
        record = run.conditions[int(table.condition[row])]
        found = (record.prompt_index, record.kernels, record.seed)
        wanted = (group.prompt_index, group.kernels, seed)
        if found == wanted and int(table.variant[row]) == variant and record.batch_size > 1:
            condition = _condition(run, record.condition_id)
            trial = plan_trials(run.experiment, condition)[int(table.trial[row])]
            request = int(table.request[row])
            tokens = divergence.position + 1
            return Subject(run.experiment, run.target, trial, request, tokens), divergence
    raise UsageError(
        f"The answers of {run.path} diverge within a batch of one, so load cannot be the cause: "
        "trace a run whose answers diverge in a larger batch."
    )


def subject_at_one_place(run: Run) -> tuple[Subject, Divergence]:
    """As `subject_of`, of answers of one placement, such as one endpoint.

    Raises UsageError too if answers diverge between placements only: that is not the load's doing.
    """
    places = {record.placement for record in run.conditions}
    return _at_one_place(
        run,
        None,
        f"between its {len(places)} places, and at none of them with the load: a burst cannot show "
        "that. Compare the places with each other.",
    )


def _at_one_place(run: Run, prompt_index: int | None, refusal: str) -> tuple[Subject, Divergence]:
    """The earliest divergence of answers of one placement.

    Raises UsageError if there is none; it ends in `refusal` if answers of two placements diverge.
    """
    places = dict.fromkeys(record.placement for record in run.conditions)
    if len(places) < 2:
        return subject_of(run, prompt_index)
    _earliest(run, prompt_index)  # raises if no answers diverge at all
    found = []
    for place in places:
        try:
            found.append(subject_of(_at(run, place), prompt_index))
        except UsageError:
            continue
    if not found:
        raise UsageError(f"The answers of {run.path} diverge {refusal}")
    return min(found, key=lambda each: each[1].position)


def _at(run: Run, place: str) -> Run:
    """The run as if the requests of its other placements had failed."""
    table = run.completions
    here = np.array([record.placement == place for record in run.conditions])
    variant = np.where(here[table.condition], table.variant, -1).astype(table.variant.dtype)
    return replace(run, completions=replace(table, variant=variant))


def _earliest(run: Run, prompt_index: int | None) -> tuple[Group, int, Divergence]:
    """The earliest divergence, with its group and seed; of stock kernels if these diverge."""
    diverged = [
        (group, split.seed, divergence)
        for group in analyse(run).groups
        for split in group.by_seed
        for divergence in split.divergences
        if prompt_index in (None, group.prompt_index)
    ]
    if not diverged:
        raise UsageError(
            f"No answers diverge in {run.path}, so there is no divergence to trace: to compare ops "
            "all the same, trace a prompt at two `batch_sizes`."
        )
    # Stock first: its cause may also explain a divergence under invariant kernels.
    return min(diverged, key=lambda each: (each[0].kernels != STOCK, each[2].position))


def _condition(run: Run, condition_id: str) -> Condition:
    every = conditions(run.experiment, run.target)
    return next(condition for condition in every if condition.condition_id == condition_id)


def subject_of_prompt(experiment: Experiment, target: Target) -> Subject:
    """The first probe of the first trial at the largest batch size of `experiment`."""
    condition = max(conditions(experiment, target), key=lambda c: c.batch_size)
    trial = plan_trials(experiment, condition)[0]
    request = next(i for i, planned in enumerate(trial.requests) if planned.is_probe)
    return Subject(experiment, target, trial, request, experiment.max_new_tokens)
