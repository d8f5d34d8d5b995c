"""Engines with cold and warm prefix caches, their trials, and the bits of their answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asking import ask, conditions_of

from detcheck.completion import Completion
from detcheck.engines.continuous import ContinuousEngine
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.targets.prefix_cache import COLD, WARM
from detcheck.traffic import Trial, plan_trials

TEXT = "The tide turned before dawn, and nobody on the pier had seen the last boat go out. " * 2


def opened(loaded: LoadedModel, setting: str, *prompts: str, **changes: Any) -> ContinuousEngine:
    options = {
        "prompts": prompts, "kernels": (setting,), "batch_sizes": (1, 4), "completions": 8,
        "max_new_tokens": 6, "prefix_cache": (COLD, WARM), "chat_template": False,
    }  # fmt: skip
    asked = ask(**(options | changes))
    assert isinstance(asked.target, InProcess)
    return ContinuousEngine(loaded, asked.experiment, asked.target)


def trials(engine: ContinuousEngine) -> Iterator[Trial]:
    for condition in conditions_of(engine.experiment, engine.target):
        yield from plan_trials(engine.experiment, condition)


def bits(completions: Any) -> set[tuple[float, ...]]:
    found: list[Completion] = [completion for _, completion in completions]
    assert all(completion.top_two is not None for completion in found)
    return {completion.top_two.logprobs for completion in found if completion.top_two is not None}
