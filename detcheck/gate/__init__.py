"""The gate: judges a run as pass, fail or inconclusive, and names the run that it judged.

    from detcheck.gate import GateOptions, judge

Names are imported when they are first used, so that the options alone load no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detcheck.gate.baseline import Baseline, baseline_of, read_baseline
    from detcheck.gate.options import GateOptions
    from detcheck.gate.verdict import PASS, GroupVerdict, Verdict, judge

__all__ = [
    "PASS",
    "Baseline",
    "GateOptions",
    "GroupVerdict",
    "Verdict",
    "baseline_of",
    "judge",
    "read_baseline",
]

_HOMES = {
    "Baseline": "detcheck.gate.baseline",
    "GateOptions": "detcheck.gate.options",
    "GroupVerdict": "detcheck.gate.verdict",
    "PASS": "detcheck.gate.verdict",
    "Verdict": "detcheck.gate.verdict",
    "baseline_of": "detcheck.gate.baseline",
    "judge": "detcheck.gate.verdict",
    "read_baseline": "detcheck.gate.baseline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detcheck.gate' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
