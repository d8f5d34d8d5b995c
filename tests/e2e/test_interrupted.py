"""Runs of the real program that are killed or interrupted at any moment, and go on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps import few

from detcheck import Run, load
from detcheck.rundir import COMPLETIONS_FILE, VARIANTS_FILE

PROGRAM = Path(__file__).with_name("diverging.py")
EXPERIMENT = ("--engine", "scripted", "-b", "1,4,8", "-n", "60", "-p", "Why?", "-p", "How?")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Returns a function that starts the program: seconds a trial, arguments -> its process."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, PROGRAM, str(seconds), "run", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The experiment, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(
        [sys.executable, PROGRAM, "0", "run", *EXPERIMENT, "-o", "run"],
        check=True,
        capture_output=True,
        timeout=60,
        cwd=folder,
    )
    run = load(folder / "run")
    assert run.complete
    assert len(run.variants) > 4
    return run


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Until the run has begun."""
    end = time.monotonic() + 30
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_for_change(file: Path, before: int, process: subprocess.Popen[str]) -> None:
    """Until a resumed run has committed something, or is through."""
    end = time.monotonic() + 30
    while file.stat().st_mtime_ns == before and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def trials(path: Path) -> int:
    return sum(record.trials for record in load(path).conditions)


def assert_undisturbed(path: Path, whole: Run) -> None:
    """Nothing in what was measured tells that the run was disturbed."""
    for name in (COMPLETIONS_FILE, VARIANTS_FILE):
        assert (path / name).read_bytes() == (whole.path / name).read_bytes()
    run = load(path)
    assert run.complete
    assert run.conditions == whole.conditions
    assert run.summary == whole.summary


@pytest.mark.sweep
@few("seconds", [0.0, 0.02])
def test_kill_9_at_any_moment_loses_at_most_the_trial_in_flight(
    start: Start, tmp_path: Path, whole: Run, seconds: float
) -> None:
    """Without a delay most kills fall into a commit; with one, most fall between two."""
    rng = random.Random(seconds)
    path, done, kills = tmp_path / "run", 0, 0
    while kills < 5:
        # The first start makes the directory, the others go on; a commit replaces run.json.
        args = ("--resume", "run") if path.exists() else (*EXPERIMENT, "-o", "run")
        before = (path / "run.json").stat().st_mtime_ns if path.exists() else None
        process = start(seconds, *args)
        if before is None:
            wait_for(path / "run.json", process)
        else:
            wait_for_change(path / "run.json", before, process)
        time.sleep(rng.uniform(0, 0.05 + 8 * seconds))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        kills += 1
        assert trials(path) >= done, "a committed trial was lost"
        done = trials(path)
        if done == trials(whole.path):
            break
    finished = start(0, "--resume", "run", "--json")
    out, err = finished.communicate(timeout=60)
    assert finished.returncode == 0, err
    assert [row["distinct"] for row in json.loads(out)["summary"]] == [
        row["distinct"] for row in whole.summary
    ]
    assert_undisturbed(path, whole)


@pytest.mark.sweep
def test_ctrl_c_is_3_with_a_sentence_and_goes_on(start: Start, tmp_path: Path, whole: Run) -> None:
    process = start(0.1, *EXPERIMENT, "-o", "run", "--json")
    wait_for(tmp_path / "run" / COMPLETIONS_FILE, process)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert "interrupted: committed trials are kept." in err
    assert "not complete; go on with: detcheck run --resume run" in err
    assert "Traceback" not in err
    stopped = load(tmp_path / "run")
    assert 0 < len(stopped.completions) < len(whole.completions)
    assert stopped.finished is None
    assert json.loads(out)["summary"] == [dict(row) for row in stopped.summary]
    again = start(0, "--resume", "run")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert_undisturbed(tmp_path / "run", whole)


@pytest.mark.sweep
def test_two_processes_cannot_write_one_run(start: Start, tmp_path: Path, whole: Run) -> None:
    first = start(0.1, *EXPERIMENT, "-o", "run")
    wait_for(tmp_path / "run/run.json", first)
    second = start(0, "--resume", "run")
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (2, "")
    assert err == (
        "error: Another process is writing to run: wait until it has ended, then go on with "
        "--resume run.\n"
    )
    first.kill()
    first.wait(timeout=30)
    third = start(0, "--resume", "run")  # a lock does not outlive its process
    _, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    assert_undisturbed(tmp_path / "run", whole)
