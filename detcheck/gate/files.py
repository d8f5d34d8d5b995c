"""The runs and files that options name by their paths: the run, its baseline and its control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detcheck.gate.options import GateOptions

if TYPE_CHECKING:
    from detcheck.analysis.results import Analysis
    from detcheck.gate.baseline import Baseline

CONTROL_FOLDER = "control"
"""Folder within a run of the run that is its control."""


def load_analysis(path: Path) -> Analysis:
    """The analysis of the run in folder `path`; raises RunDirectoryError as `load` does."""
    from detcheck import rundir
    from detcheck.analysis.analyse import analyse

    return analyse(rundir.load(path))


def accepted_answers(path: Path, kernels: tuple[str, ...]) -> Baseline:
    """The baseline at `path`: a run's answers if it is a folder, else a file.

    Raises UsageError if there is none, or if the run is no evidence of its answers.
    """
    from detcheck.gate.baseline import baseline_of, read_baseline

    return baseline_of(load_analysis(path), kernels) if path.is_dir() else read_baseline(path)


def baseline_named(analysis: Analysis, options: GateOptions) -> Baseline | None:
    """The baseline that `options` name, for the kernels that they judge; None if they name none.

    Raises UsageError as `accepted_answers` does.
    """
    if options.baseline is None:
        return None
    return accepted_answers(options.baseline, options.kernels_of(analysis.run.experiment.kernels))


def control_run(analysis: Analysis, options: GateOptions) -> Analysis | None:
    """The run that `options` name as the control, else the one that `detcheck run` has kept.

    None if there is neither; raises RunDirectoryError as `load_analysis` does.
    """
    from detcheck.rundir import RUN_FILE

    kept = analysis.run.path / CONTROL_FOLDER
    if options.control is None and not (kept / RUN_FILE).exists():
        return None
    return load_analysis(options.control or kept)
