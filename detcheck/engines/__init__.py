"""The engines, which generate the answers: a file or folder each, behind the protocol in `base`."""

from __future__ import annotations

from importlib import import_module

from detcheck.engines.base import Engine, OnWait, TrialResult
from detcheck.engines.openai.connection import Connection
from detcheck.experiment import Experiment
from detcheck.targets import Target

__all__ = ["Connection", "Engine", "TrialResult", "open_engine"]


def open_engine(
    experiment: Experiment,
    target: Target,
    connection: Connection | None = None,
    on_wait: OnWait | None = None,
) -> Engine:
    """The engine of `target`, with its model loaded or its servers checked.

    `connection` says how to reach servers, and `on_wait` is called with a phrase before the checks
    wait for one; other targets have no use for them. Raises ModelError or UsageError, in one
    sentence, if that cannot be done.
    """
    module, _, name = target.factory.partition(":")
    kind = getattr(import_module(module), name)
    engine: Engine = kind.open(experiment, target, connection, on_wait)
    return engine
