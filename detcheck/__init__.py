"""detcheck: does an LLM give the same answer when only the load around the request changes?

    from detcheck import Experiment, run, load, batch_invariant, assert_batch_invariant
    from detcheck.analysis.analyse import analyse

Names are imported when they are first used, so that `import detcheck` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from detcheck.analysis.analyse import analyse
    from detcheck.experiment import Experiment
    from detcheck.kernels.mode import batch_invariant
    from detcheck.probes.asserts import assert_batch_invariant
    from detcheck.rundir import Run, load
    from detcheck.runner import resume, run
    from detcheck.targets import InProcess, Served, Vllm

__all__ = [
    "Experiment",
    "InProcess",
    "Run",
    "Served",
    "Vllm",
    "analyse",
    "assert_batch_invariant",
    "batch_invariant",
    "load",
    "resume",
    "run",
]

_HOMES = {
    "Experiment": "detcheck.experiment",
    "InProcess": "detcheck.targets",
    "Run": "detcheck.rundir",
    "Served": "detcheck.targets",
    "Vllm": "detcheck.targets",
    "analyse": "detcheck.analysis",
    "assert_batch_invariant": "detcheck.probes.asserts",
    "batch_invariant": "detcheck.kernels.mode",
    "load": "detcheck.rundir",
    "resume": "detcheck.runner",
    "run": "detcheck.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detcheck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
