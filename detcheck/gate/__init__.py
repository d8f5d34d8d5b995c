"""The gate: judges a run as pass, fail or inconclusive, and says what was judged."""

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
