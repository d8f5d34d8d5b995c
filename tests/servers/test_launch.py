"""A launched server ends with its launcher, however the launcher ends, and takes its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sweeps import few

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""  # noqa: E501
LAUNCHER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by jobs in the background
from pathlib import Path
from servers import launch
launch._folder = lambda: os.environ["PIDS"]
launch.python = lambda kind: Path(sys.executable)
launch.KINDS["plain"] = launch.Kind(lambda port: ["-c", os.environ["SERVER"], str(port)], "/")
with launch.launch("plain") as server:
    print(server.endpoint, flush=True)
    {body}
"""
LIMIT_S = 20.0


@contextmanager
def launcher(folder: Path, body: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that has launched a server: (the process, pids of the server and its child)."""
    pids = folder / "pids"
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(body=body)],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), *sys.path)),
            "PIDS": str(pids),
            "SERVER": SERVER,
        },
    )
    started: list[int] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        started = [int(pid) for pid in pids.read_text().split()]
        yield process, started
    finally:
        for pid in (process.pid, *started):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self").exists() and _answers(pid)
    return status.rpartition(")")[2].split()[0] != "Z"


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def all_end(pids: list[int]) -> bool:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.sweep
@few("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_server_and_its_children_end_with_a_launcher_that_is_killed(tmp_path, number) -> None:
    with launcher(tmp_path, "time.sleep(120)") as (process, pids):
        assert len(pids) == 2
        assert all(running(pid) for pid in pids)
        process.send_signal(number)
        assert all_end(pids)


@pytest.mark.sweep
def test_server_and_its_children_end_with_the_block(tmp_path) -> None:
    with launcher(tmp_path, "pass") as (process, pids):
        assert all_end(pids)
        assert process.wait(LIMIT_S) == 0
