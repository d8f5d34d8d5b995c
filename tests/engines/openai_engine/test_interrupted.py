"""Ctrl-C in the middle of a trial, and resuming the run afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detcheck import rundir

PROGRAM = (
    *(sys.executable, "-c"),
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from detcheck.cli.app import main; main()",
)


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, "run", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def committed(run: Path) -> int:
    file = run / "completions.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


@pytest.mark.sweep
def test_ctrl_c_keeps_committed_trials_and_resume_finishes_the_run(serve, tmp_path):
    server = serve()
    run = tmp_path / "run"
    waiting = False

    def stall_later(number, body):
        nonlocal waiting
        if "Tell me about Richard" in body["messages"][0]["content"] and committed(run) >= 8:
            waiting = True
            return "stall"
        return None

    server.behaviour.fault = stall_later
    options = ("-n", "24", "-b", "1,4", "--max-new-tokens", "6", "-o", str(run))
    program = start(tmp_path, "--endpoint", server.url, *options)
    deadline = time.monotonic() + 60
    while not waiting and time.monotonic() < deadline:
        time.sleep(0.02)
    assert waiting
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=30)
    assert program.returncode == 3, err
    assert "interrupted: committed trials are kept" in err
    stored = rundir.load(run)
    assert 8 <= len(stored.completions) < 24
    assert stored.finished is None

    server.behaviour.fault = lambda number, body: None
    program = start(tmp_path, "--resume", str(run))
    _, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    resumed = rundir.load(run)
    assert (len(resumed.completions), resumed.complete) == (24, True)
    assert resumed.endpoint_checks
