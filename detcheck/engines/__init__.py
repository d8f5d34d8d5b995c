"""What generates the answers: one folder or file an engine, behind the protocol in `base`."""

from __future__ import annotations

from importlib import import_module

from detcheck.engines.base import Engine, TrialResult
from detcheck.engines.openai.connection import Connection
from detcheck.experiment import Experiment
from detcheck.targets import Target

__all__ = ["Connection", "Engine", "TrialResult", "open_engine"]


def open_engine(
    experiment: Experiment, target: Target, connection: Connection | None = None
) -> Engine:
    """The engine of `target`, with its model loaded or its servers checked.

    `connection` says how to reach servers; other targets have no use for it. Raises ModelError or
    UsageError, in one sentence, if that cannot be done.
    """
    module, _, name = target.factory.partition(":")
    engine: Engine = getattr(import_module(module), name).open(experiment, target, connection)
    return engine
