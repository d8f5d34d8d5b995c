"""The summary is plain data with exactly the keys that `run --json` promises."""

from __future__ import annotations

import json
from collections.abc import Callable

from detcheck.analysis import analyse
from detcheck.analysis.summary import summary_rows
from detcheck.engines.scripted import Planted
from detcheck.rundir import Run

KEYS = [
    *("prompt", "kernels", "completions", "failed", "distinct", "most_common"),
    *("first_divergence", "flips", "batch_evidence", "tokens_per_second", "relative_cost"),
    *("seeds", "distinct_within_seed"),
]


def test_rows_say_what_was_planted(planted_run: Callable[..., Run]) -> None:
    rows = summary_rows(analyse(planted_run(Planted(position=5, token_id=3))))
    assert all(list(row) == KEYS for row in rows)
    assert [row["kernels"] for row in rows] == ["stock", "batch-invariant"]
    assert [row["first_divergence"] for row in rows] == [5, None]
    assert [row["distinct"] for row in rows] == [2, 1]
    assert rows[0]["flips"] == {"tie": 1, "near tie": 0, "confident": 0, "unknown": 0}
    assert json.loads(json.dumps(rows)) == rows
