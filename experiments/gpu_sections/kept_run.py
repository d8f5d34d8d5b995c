"""A run directory of the trials that a section makes, so that `detcheck report` can read them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_sections.common import error_text


class KeptRun:
    """Writes trials to a run directory. If that fails, it says so once and keeps no more."""

    def __init__(self, folder: Path | None, engine: Any):
        """`folder` gets a folder of its own for this run; None keeps nothing."""
        self.path: Path | None = None
        self._engine = engine
        self._writer: Any = None
        self._made: Counter[int] = Counter()
        if folder is not None:
            self._try(lambda: self._create(folder))

    def append(self, trial: Any, result: Any) -> None:
        """Keep one trial."""
        if self._writer is not None:
            self._try(lambda: self._append(trial, result))

    def finish(self) -> None:
        """Write the proofs and the summary."""
        if self._writer is not None:
            self._try(self._finish)
            self._writer.close()

    def _try(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # the measurements are still worth having
            print(f"no run directory: {error_text(error)}", file=sys.stderr)
            self.path = self._writer = None

    def _create(self, folder: Path) -> None:
        from detcheck import __version__, environment
        from detcheck.execution import utc_now
        from detcheck.grid import conditions
        from detcheck.rundir import RunWriter
        from detcheck.runner import new_run_id

        engine, run_id = self._engine, new_run_id()
        self._index = {
            condition: index
            for index, condition in enumerate(conditions(engine.experiment, engine.target))
        }
        self._writer = RunWriter.create(
            folder / run_id, engine.experiment, engine.target,
            environment.collect(engine.target.device), run_id=run_id, version=__version__,
            created=utc_now(), model=engine.model_identity(),
        )  # fmt: skip
        self.path = folder / run_id

    def _append(self, trial: Any, result: Any) -> None:
        condition = trial.condition
        index = self._index[condition]
        self._writer.set_proof(self._engine.proof(condition.kernels))
        self._writer.append_trial(
            index, self._made[index], result.completions, elapsed_s=result.elapsed_s,
            generated_tokens=result.generated_tokens, load=result.load,
        )  # fmt: skip
        self._made[index] += 1
        record = self._writer.records[index]
        done = self._made[index] * trial.num_probes >= record.asked
        self._writer.set_status(index, "done" if done else "running")

    def _finish(self) -> None:
        from detcheck import rundir
        from detcheck.analysis import analyse
        from detcheck.analysis.summary import summary_rows
        from detcheck.execution import utc_now

        self._writer.save()
        run = rundir.load(self.path)
        whole = all(record.status == "done" for record in self._writer.records)
        self._writer.finish(summary_rows(analyse(run)), utc_now() if whole else None)
