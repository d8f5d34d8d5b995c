"""A large `run.json` is replaced seldom, and a run still loses next to nothing."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from recorded import create, record, small_experiment
from runner.measured import counts

from detcheck import Run, load, resume, run
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import MeasurementError, StorageError
from detcheck.rundir import RUN_FILE, RunWriter, writer
from detcheck.targets import Scripted

ASKED = small_experiment(completions=40, batch_sizes=(1, 4), prompts=("Why?", "How?"))
PLANTED = [Planted(5, 3, rate=0.4)]


@pytest.fixture
def whole(tmp_path: Path) -> Run:
    return run(ASKED, Scripted(), tmp_path / "whole", engine=ScriptedEngine(PLANTED))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the writer reads; every `run.json` is large, and due after a second a byte."""
    now = [0.0]
    monkeypatch.setattr(writer, "SMALL_BYTES", 0)
    monkeypatch.setattr(writer, "BYTES_A_SECOND", 1.0)
    monkeypatch.setattr(writer, "monotonic", lambda: now[0])
    return now


def replacements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the `run.json` files that are written from now on."""
    sizes: list[int] = []
    real = writer.replace_file

    def replace_file(path: Path, data: bytes) -> None:
        sizes.append(len(data))
        real(path, data)

    monkeypatch.setattr(writer, "replace_file", replace_file)
    return sizes


def test_a_small_one_is_replaced_after_every_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = replacements(monkeypatch)
    measured = record(tmp_path / "run", experiment=ASKED)
    assert len(sizes) > sum(condition.trials for condition in measured.conditions)


def test_a_large_one_is_replaced_when_it_is_due(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    sizes = replacements(monkeypatch)

    class Ticking(ScriptedEngine):
        def run_trial(self, *args, **options):
            clock[0] += 1000.0
            return super().run_trial(*args, **options)

    measured = run(ASKED, Scripted(), tmp_path / "run", engine=Ticking(PLANTED))
    trials = sum(condition.trials for condition in measured.conditions)
    assert 5 < len(sizes) < trials / 2
    assert counts(measured) == counts(whole)
    assert load(tmp_path / "run").complete


def test_what_was_saved_before_a_kill_is_whole(
    tmp_path: Path, clock: list[float], whole: Run
) -> None:
    made, copies = tmp_path / "run", []

    class Killed(ScriptedEngine):
        def run_trial(self, *args, **options):
            clock[0] += 1500.0
            copies.append(shutil.copytree(made, tmp_path / f"killed{len(copies)}"))
            return super().run_trial(*args, **options)

    run(ASKED, Scripted(), made, engine=Killed(PLANTED))
    kept = [sum(c.trials for c in load(copy).conditions) for copy in copies]
    assert kept == sorted(kept)
    assert all(trials - 8 <= saved <= trials for trials, saved in enumerate(kept))
    assert any(saved < trials for trials, saved in enumerate(kept))
    for copy in copies[:: len(copies) // 4]:
        assert counts(resume(copy, engine=ScriptedEngine(PLANTED))) == counts(whole)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MeasurementError("gone"), RuntimeError()])
def test_an_error_or_ctrl_c_loses_nothing(
    tmp_path: Path, clock: list[float], error: BaseException
) -> None:
    engine = ScriptedEngine(PLANTED, fail_with={("p1/stock/b4", 2): error})
    with suppress(RuntimeError):
        run(ASKED, Scripted(), tmp_path / "run", engine=engine)
    kept = {c.condition_id: c.trials for c in load(tmp_path / "run").conditions}
    assert kept["p1/stock/b4"] == 2
    assert kept["p0/batch-invariant/b4"] > 2


def test_a_full_disk_saves_the_trials_before(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = RunWriter._append, [7]

    def full(self: RunWriter, name: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, name, data)

    monkeypatch.setattr(RunWriter, "_append", full)
    with pytest.raises(StorageError, match="no space left on device"):
        run(ASKED, Scripted(), tmp_path / "run", engine=ScriptedEngine(PLANTED))
    assert sum(c.trials for c in load(tmp_path / "run").conditions) >= 3


def test_closing_twice_saves_once(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create(tmp_path / "run", ASKED)
    made.set_status(0, "failed", "no memory")
    made.save(if_due=True)
    assert b"no memory" not in (tmp_path / "run" / RUN_FILE).read_bytes()
    sizes = replacements(monkeypatch)
    made.close()
    made.close()
    assert len(sizes) == 1
    assert load(tmp_path / "run").conditions[0].error == "no memory"
