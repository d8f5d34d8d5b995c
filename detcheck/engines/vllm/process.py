"""A worker in a process of its own: JSON lines in, JSON lines out, and an end to every wait."""

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
"""How long a worker may take to go before it is killed."""
_LAST_BYTES = 200_000
_ROOT_CAUSE = re.compile(r"([A-Za-z]\w*(?:Error|Exception): .*)")
VAGUE = ("EngineDeadError", "See stack trace", "see the stack trace")
"""Words of errors that only say that there was one."""

Message = dict[str, Any]


class WorkerDied(MeasurementError):  # noqa: N818  (what it says is what happened)
    """A worker ended, or was ended, before it had answered."""


class WorkerProcess:
    """`python -m module`, with what it prints kept until it has ended, in a file without a name.

    It leads a process group of its own: Ctrl-C reaches detcheck alone, and whatever the worker
    started goes when it goes.
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
        """Raises WorkerDied where nobody listens any more."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        except OSError as error:
            raise self._died("ended") from error

    def receive(self, patience_s: float) -> Message:
        """The next message; raises WorkerDied where none comes within `patience_s`."""
        try:
            line = self._inbox.get(timeout=patience_s)
        except queue.Empty:
            raise self._died(f"said nothing for {patience_s:.0f} s and was stopped") from None
        if line is None:
            raise self._died("ended")
        message: Message = json.loads(line)
        return message

    def stop(self) -> None:
        """End the worker and whatever it started; does not fail, whatever state it is in."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self._signal(signal.SIGKILL)  # whoever of the group is left
        self._process.wait()
        self._receiver.join(STOP_S)
        self._log.close()

    def kill(self) -> None:
        """The same at once, for a worker in the middle of something."""
        self._signal(signal.SIGKILL)
        self.stop()

    def root_cause(self) -> str | None:
        """The last error of its log that says something, or None."""
        lines = self.printed().splitlines()
        found = (match[1] for line in reversed(lines) if (match := _ROOT_CAUSE.search(line)))
        return next((error for error in found if not any(word in error for word in VAGUE)), None)

    def printed(self) -> str:
        """The end of what it has printed. Read without moving: it writes where the file stands."""
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
            if line.endswith("\n"):  # killed in the middle of a message, it said half of it
                inbox.put(line)
    inbox.put(None)
