"""Run a server, and end it with every process it started as soon as its launcher has ended.

    python tests/servers/guard.py COMMAND ...

Standard input must be a pipe that only the launcher holds open: the system closes it when the
launcher ends, even by SIGKILL. The guard must lead a process group of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

STOP_S = 15.0
"""Seconds between SIGTERM and SIGKILL."""


def main() -> int:
    """Run the command; return its exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_wait_for_launcher, daemon=True).start()
    try:
        return child.wait()
    finally:
        _end_group(child)


def _wait_for_launcher() -> None:
    """Block until standard input is closed, then end this process."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to every process of the group but this one; SIGKILL to the group if that fails."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_S)
        return
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
