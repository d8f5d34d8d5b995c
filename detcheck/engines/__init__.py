"""Who answers: one file an engine, behind the protocol in `base`."""

from __future__ import annotations

from detcheck.engines.base import Engine, TrialResult
from detcheck.experiment import Experiment

__all__ = ["Engine", "TrialResult", "create"]


def create(experiment: Experiment) -> Engine:
    """The engine that an experiment asks for, with its model loaded.

    Raises ModelError or UsageError, in one sentence, where that cannot be done.
    """
    if experiment.engine == "scripted":
        from detcheck.engines.scripted import ScriptedEngine

        return ScriptedEngine()
    from detcheck import models

    loaded = models.load(
        experiment.model,
        dtype=experiment.dtype,
        device=experiment.device,
        trust_remote_code=experiment.trust_remote_code,
    )
    if experiment.engine == "static":
        from detcheck.engines.static import StaticEngine

        return StaticEngine(loaded, experiment)
    from detcheck.engines.continuous import ContinuousEngine

    return ContinuousEngine(loaded, experiment)
