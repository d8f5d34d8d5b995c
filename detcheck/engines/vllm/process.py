"""A worker in a process of its own: JSON lines in, JSON lines out, every wait with a timeout."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from detcheck.errors import MeasurementError

STOP_S = 10.0
"""Time that a worker has to end before it is killed."""
_LAST_BYTES = 200_000
_ROOT_CAUSE = re.compile(r"([A-Za-z]\w*(?:Error|Exception): .*)")
VAGUE = ("EngineDeadError", "See stack trace", "see the stack trace")
"""Words of errors that give no cause."""

Message = dict[str, Any]


class WorkerDied(MeasurementError):  # noqa: N818  (the name of the event)
    """A worker ended, or was stopped, before it had answered."""


class WorkerProcess:
    """`python -m module`, with its stderr kept in an unnamed temporary file until it has ended.

    It leads a process group of its own: Ctrl-C reaches only detcheck, and the worker's own child
    processes end with it.
    """

    def __init__(self, module: str, environment: Mapping[str, str]):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        root = str(Path(__file__).parents[3])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self._inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._receiver = threading.Thread(
            target=_receive, args=(self._process.stdout, self._inbox), daemon=True
        )
        self._receiver.start()

    def send(self, message: Message) -> None:
        """Send a message; raises WorkerDied if the worker has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        except OSError as error:
            raise self._died("ended") from error

    def receive(self, patience_s: float) -> Message:
        """The next message; raises WorkerDied if none comes within `patience_s` seconds."""
        try:
            line = self._inbox.get(timeout=patience_s)
        except queue.Empty:
            raise self._died(f"sent nothing for {patience_s:.0f} s and was stopped") from None
        if line is None:
            raise self._died("ended")
        message: Message = json.loads(line)
        return message

    def stop(self) -> None:
        """End the worker and its child processes; never raises."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self._signal(signal.SIGKILL)  # processes of the group that are left
        self._process.wait()
        self._receiver.join(STOP_S)
        self._log.close()

    def kill(self) -> None:
        """Like `stop`, without waiting for the worker to end by itself."""
        self._signal(signal.SIGKILL)
        self.stop()

    def root_cause(self) -> str | None:
        """The last error of its log that gives a cause, or None."""
        lines = self.printed().splitlines()
        found = (match[1] for line in reversed(lines) if (match := _ROOT_CAUSE.search(line)))
        return next((error for error in found if not any(word in error for word in VAGUE)), None)

    def printed(self) -> str:
        """The end of its log. Read with pread, since the worker writes at the file's position."""
        descriptor = self._log.fileno()
        start = max(0, os.fstat(descriptor).st_size - _LAST_BYTES)
        return os.pread(descriptor, _LAST_BYTES, start).decode("utf-8", "replace")

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _died(self, how: str) -> WorkerDied:
        cause = self.root_cause()
        self.kill()
        why = f" ({' '.join(cause.split())[:200]})" if cause else ""
        return WorkerDied(f"vLLM {how}{why}.")


def _receive(stream: IO[str] | None, inbox: queue.SimpleQueue[str | None]) -> None:
    assert stream is not None
    with suppress(ValueError, OSError), stream:
        for line in stream:
            if line.endswith("\n"):  # a worker killed while writing leaves half a message
                inbox.put(line)
    inbox.put(None)
