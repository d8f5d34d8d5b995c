"""Who answers: one file an engine, behind the protocol in `base`."""

from __future__ import annotations

from detcheck.engines.base import Engine, TrialResult
from detcheck.engines.openai.connection import Connection
from detcheck.experiment import OPENAI, VLLM, Experiment

__all__ = ["Connection", "Engine", "TrialResult", "create"]


def create(experiment: Experiment, connection: Connection | None = None) -> Engine:
    """The engine that an experiment asks for, with its model loaded or its servers checked.

    `connection` says how to reach endpoints, and is for them only.
    Raises ModelError or UsageError, in one sentence, where that cannot be done.
    """
    if experiment.engine == "scripted":
        from detcheck.engines.scripted import ScriptedEngine

        return ScriptedEngine()
    if experiment.engine == OPENAI:
        from detcheck.engines.openai.engine import OpenAIEngine

        return OpenAIEngine(experiment, connection or Connection())
    if experiment.engine == VLLM:
        from detcheck.engines.vllm.engine import VllmEngine

        return VllmEngine(experiment)
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
