"""Who listens to a run hears everything, in order."""

from __future__ import annotations

from pathlib import Path

from asking import conditions_of
from recorded import small_experiment

from detcheck import Run, resume, run
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import OutOfMemory
from detcheck.kernels.settings import STOCK
from detcheck.traffic import plan_trials

from .measured import EXPERIMENT, MIDDLE, Engine, Recorder


def test_a_listener_hears_everything_in_order(tmp_path: Path) -> None:
    experiment = small_experiment(completions=9, batch_sizes=(1, 4), kernels=(STOCK,))
    engine, heard = ScriptedEngine([Planted(5, 3)]), Recorder()
    run(experiment, out=tmp_path / "run", engine=engine, listener=heard)
    one, four = (
        [
            call
            for trial in plan_trials(experiment, condition)
            for call in (
                ("tokens", index, 24 * trial.num_probes),
                ("trial", index, trial.index + 1, distinct),
            )
        ]
        for (index, condition), distinct in zip(
            enumerate(conditions_of(experiment)), (1, 2), strict=True
        )
    )
    assert heard.calls == [
        ("run", "run", 2),
        ("start", 0, "running", 0),
        *one,
        ("end", 0, "done"),
        ("start", 1, "running", 0),
        *four,
        ("end", 1, "done"),
    ]


def test_a_listener_of_a_resumed_run_counts_on(tmp_path: Path, whole: Run) -> None:
    heard, before, after = Recorder(), Recorder(), Recorder()
    run(EXPERIMENT, out=tmp_path / "whole", engine=Engine(), listener=heard)
    engine = Engine(fail_with={MIDDLE[1]: KeyboardInterrupt()})
    run(EXPERIMENT, out=tmp_path / "run", engine=engine, listener=before)
    resume(tmp_path / "run", engine=Engine(), listener=after)
    assert ("start", 2, "running", 8) in after.calls
    trials = [call for call in before.calls + after.calls if call[0] == "trial"]
    assert trials == [call for call in heard.calls if call[0] == "trial"]


def test_a_listener_hears_of_what_failed(tmp_path: Path) -> None:
    heard = Recorder()
    error = OutOfMemory("Out of memory at batch size 4.")
    engine = Engine(fail_with={("p1/stock/b4", 0): error})
    run(EXPERIMENT, out=tmp_path / "run", engine=engine, listener=heard)
    assert [call for call in heard.calls if call[-1] == "failed"] == [
        ("end", 8, "failed"),
        ("end", 10, "failed"),
    ]
    assert ("start", 10, "running", 0) not in heard.calls
