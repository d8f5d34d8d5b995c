"""The program with a scripted engine that diverges and takes its time: SECONDS ARGS…

Run as a script: `SECONDS` is what each trial takes, the rest is the command line of detcheck.
"""

from __future__ import annotations

import signal
import sys
import time

from detcheck import environment, runner
from detcheck.cli.app import main
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.traffic import Trial

SECONDS = float(sys.argv.pop(1))


class SlowEngine(ScriptedEngine):
    """Takes its time over each trial."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        time.sleep(SECONDS)
        return super().run_trial(trial, on_tokens)


def open_engine(*_: object, **__: object) -> SlowEngine:
    planted = (Planted(5, 3, rate=0.4), Planted(9, 2, min_batch_size=8, rate=0.5))
    return SlowEngine(planted, noise=0.1)


runner.open_engine = open_engine
environment._torch_module = lambda required: None  # type: ignore[assignment] # half of the start
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with &
main()
