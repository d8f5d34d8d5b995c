"""One small run, and how to compare what was written and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from recorded import small_experiment

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.rundir import (
    COMPLETIONS_FILE,
    RUN_FILE,
    VARIANTS_FILE,
    Run,
)

FILES = (RUN_FILE, COMPLETIONS_FILE, VARIANTS_FILE)
EXPERIMENT = small_experiment(completions=20, batch_sizes=(1, 4))
TRIALS = 16


def engine() -> ScriptedEngine:
    return ScriptedEngine([Planted(5, 3, rate=0.4), Planted(9, 2, rate=0.3)], noise=0.1)


def snapshot(run: Run) -> Any:
    """Everything a run says, comparable; the folder it lies in aside."""
    table = run.completions
    return (
        (run.run_id, run.detcheck_version, run.experiment, run.environment, run.created),
        (run.conditions, run.proofs, run.finished, run.summary),
        [
            (
                (v.prompt_index, v.fingerprint, v.text),
                [_plain(c) for c in (v.token_ids, v.token_ends, v.runner_up_token_ids, v.gaps)],
            )
            for v in run.variants
        ],
        {
            name: getattr(table, name).tobytes()
            for name in table.__slots__
            if name != "top_logprobs"
        },
        {row: logprobs.tobytes() for row, logprobs in table.top_logprobs.items()},
    )


def _plain(column: np.ndarray[Any, Any] | None) -> bytes | None:
    return None if column is None else column.tobytes()


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}
