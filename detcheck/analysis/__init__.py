"""What a run means: variants, divergences, flips and statistics. No torch."""

from detcheck.analysis.analyse import analyse
from detcheck.analysis.results import Analysis, Group

__all__ = ["Analysis", "Group", "analyse"]
