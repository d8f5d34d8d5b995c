"""The model that a run asked, and the machine that computed it."""

from __future__ import annotations

from detcheck.experiment import AUTO
from detcheck.rundir import Run

EMBEDDED = "SmolLM2-135M-Instruct"


def models_of(run: Run) -> tuple[str, ...]:
    """The names by which the model of a run is known; empty if the run does not record it.

    The first is the one to show: the name that was asked for, else the one that answered.
    """
    asked = run.setting("model")
    embedded = (f"{EMBEDDED} (embedded)", EMBEDDED, "embedded")
    names = (asked,) if asked else embedded if run.traits.computes_here else ()
    return tuple(dict.fromkeys(name for name in (*names, run.model.name) if name))


def dtype_of(run: Run) -> str | None:
    """The number type of the weights: as loaded, else as asked for; None if neither names one."""
    asked = run.setting("dtype")
    return run.model.dtype or (None if asked in (None, AUTO) else str(asked))


def target_of(run: Run) -> str:
    """The device of this machine that computed the answers, or the URLs of the servers."""
    endpoints = run.setting("endpoints")
    if endpoints:
        return ", ".join(endpoints)
    return str(run.environment.get("device") or run.setting("device") or "an unknown device")
