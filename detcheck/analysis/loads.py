"""Which completions were computed under the same load.

A deterministic engine answers an identical load identically, so a repeated load is no new evidence.
Two completions have the same load if condition, composition of the trial and position in it agree.
These trials of a condition have one composition:

- trial 1, which repeats trial 0 on purpose;
- every trial of a batch of one;
- every trial of a lockstep engine whose batch holds only copies of the prompt, since arrivals do
  not matter there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detcheck.analysis.variants import IntArray
from detcheck.rundir import Run


def same_load(run: Run, rows: IntArray, row: int) -> npt.NDArray[np.bool_]:
    """Which completions of `rows` have the load of completion `row`; (rows,)."""
    table = run.completions
    condition = int(table.condition[row])
    same: npt.NDArray[np.bool_] = (table.condition[rows] == condition) & (
        table.request[rows] == table.request[row]
    )
    trials = np.append(table.trial[rows[same]], table.trial[row])
    compositions = composition(run, condition, trials)
    same[same] = compositions[:-1] == compositions[-1]
    return same


def composition(run: Run, condition: int, trial: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The composition of load of each trial of a condition: equal numbers, equal compositions."""
    lockstep = run.traits.lockstep and run.experiment.traffic == "alone"
    if run.conditions[condition].batch_size == 1 or lockstep:
        return np.zeros_like(trial)
    if not run.traits.repeats_exactly:
        return trial
    return np.where(trial < run.experiment.repeat_trial, 0, trial).astype(np.int32)
