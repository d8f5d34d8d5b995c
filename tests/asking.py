"""Experiments and targets for tests, made of one set of options as the command line has them."""

from __future__ import annotations

from typing import Any, NamedTuple

from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.targets import InProcess, Target, from_dict


class Asked(NamedTuple):
    """What is asked, and of whom."""

    experiment: Experiment
    target: Target


def ask(**options: Any) -> Asked:
    """The experiment and target that `options` describe; the experiment's kernels are settled."""
    own = {name: value for name, value in options.items() if name in Experiment.__struct_fields__}
    rest = {name: value for name, value in options.items() if name not in own}
    target = from_dict(rest)
    return Asked(target.settle(Experiment(**own)), target)


def settled(**options: Any) -> Experiment:
    """An experiment for the default target, its kernels settled."""
    return ask(**options).experiment


def conditions_of(experiment: Experiment, target: Target | None = None) -> tuple[Condition, ...]:
    """The conditions of a settled experiment at `target`, by default the one in process."""
    return conditions(experiment, target or InProcess())
