"""Faults of the engine and of the disk: what was measured before is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sweeps import few

from detcheck import Run, load, resume, run
from detcheck.errors import MeasurementError, OutOfMemory, StorageError

from .measured import EXPERIMENT, MIDDLE, Engine, assert_same, by_id, lines


def test_out_of_memory_keeps_what_was_measured_and_spares_larger_batches(
    tmp_path: Path, whole: Run
) -> None:
    error = OutOfMemory("Out of memory at batch size 4.")
    measured = run(
        EXPERIMENT, out=tmp_path / "run", engine=Engine(fail_with={("p0/stock/b4", 2): error})
    )
    records = by_id(measured)
    at_fault = records["p0/stock/b4"]
    assert (at_fault.status, at_fault.trials, at_fault.completed) == ("failed", 2, 8)
    assert at_fault.error == "Out of memory at batch size 4."
    skipped = ["p0/stock/b8", "p1/stock/b4", "p1/stock/b8"]
    for condition_id in skipped:
        assert (records[condition_id].status, records[condition_id].trials) == ("failed", 0)
        assert records[condition_id].error == "Not tried: memory ran out at batch size 4 before."
    others = set(records) - {"p0/stock/b4", *skipped}
    assert {records[condition_id].status for condition_id in others} == {"done"}
    assert (measured.complete, measured.finished is not None) == (False, True)
    assert_same(resume(tmp_path / "run", engine=Engine()), whole)


def test_another_fault_ends_its_condition_only(tmp_path: Path, whole: Run) -> None:
    error = MeasurementError("The engine failed.")
    engine = Engine(fail_with={("p0/stock/b4", 0): error})
    measured = run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    failed = [r for r in measured.conditions if r.status != "done"]
    assert [(r.condition_id, r.status, r.error) for r in failed] == [
        ("p0/stock/b4", "failed", "The engine failed.")
    ]
    assert not measured.complete
    assert_same(resume(tmp_path / "run", engine=Engine()), whole)


def test_a_bug_ends_the_run_and_loses_nothing(tmp_path: Path, whole: Run) -> None:
    engine = Engine(fail_with={MIDDLE[1]: ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    assert engine.closed
    kept = load(tmp_path / "run")
    assert sum(record.trials for record in kept.conditions) == len(engine.asked) - 1 > 0
    assert lines(resume(tmp_path / "run", engine=Engine())) == lines(whole)


@few("after", [1, 2, 3, 4, 20, 41], every=3)
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    synced = iter(range(1000))

    def full(file: int) -> None:
        if next(synced) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")

    engine = Engine()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"no space left on device.*`resume="):
            run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    assert engine.closed
    kept = load(tmp_path / "run")
    trials = sum(record.trials for record in kept.conditions)
    assert trials in (len(engine.asked) - 1, len(engine.asked))
    assert lines(resume(tmp_path / "run", engine=Engine())) == lines(whole)
