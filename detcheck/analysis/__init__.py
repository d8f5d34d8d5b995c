"""Analysis of a run: variants, divergences, flips and statistics. Imports no torch."""

from detcheck.analysis.analyse import analyse
from detcheck.analysis.results import Analysis, Group

__all__ = ["Analysis", "Group", "analyse"]
