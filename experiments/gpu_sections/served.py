"""Section `served`: the deterministic modes of vLLM and SGLang, as they are served, under load.

Each server is started with and without its mode, with a model without experts and one with them,
and asked by detcheck like any endpoint: 44 requests at once, the same request several times.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_sections.clock import Clock
from gpu_sections.common import error_text
from gpu_sections.device import device
from gpu_sections.loading import new_tokens, saved_model

ROOT = Path(__file__).parents[2]
START_S = 240.0
LOADS = "1,44"
COMPLETIONS = 90


@dataclass(frozen=True)
class Arm:
    """One way to serve a model."""

    name: str
    module: str
    """What must be importable for it."""
    command: tuple[str, ...]
    """Arguments of Python; `{model}` and `{port}` are filled in."""
    invariant: bool
    """True if the server promises one answer."""
    environment: Mapping[str, str] = field(default_factory=dict)


VLLM = ("-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--port", "{port}",
        "--max-model-len", "1024", "--max-num-seqs", "64")  # fmt: skip
SGLANG = ("-m", "sglang.launch_server", "--model-path", "{model}", "--port", "{port}")
ARMS = (
    Arm("vLLM, batch-invariant", "vllm", VLLM, True, {"VLLM_BATCH_INVARIANT": "1"}),
    Arm("SGLang, deterministic", "sglang", (*SGLANG, "--enable-deterministic-inference"), True),
    Arm("vLLM", "vllm", VLLM, False),
)
"""In order of value: the promises first, the control after them."""


def served_modes(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Distinct answers of each server over loads, for a dense model and one with experts."""
    del options
    here = [arm for arm in ARMS if find_spec(arm.module) is not None]
    if device.name == "cpu":
        here = [STAND_IN]
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in here:
            for experts in (False, True):
                if clock.spent():
                    return {"rows": rows, "failures": failures, "unfinished": True}
                name = "experts" if experts else "dense"
                try:
                    model = saved_model(Path(folder) / name, experts=experts)
                    rows.append({"arm": arm.name, "model": name, **asked(arm, model, clock)})
                except Exception as error:  # the other servers are still worth having
                    failures.append(f"{arm.name}, {name}: {error_text(error)}")
    return {"rows": rows, "failures": failures}


def asked(arm: Arm, model: Path, clock: Clock) -> dict[str, Any]:
    """Start a server, run an experiment against it, and count its answers."""
    with served(arm, model, min(START_S, max(clock.left(), 10))) as url, \
            tempfile.TemporaryDirectory() as folder:  # fmt: skip
        out = Path(folder) / "run"
        command = [
            sys.executable, "-m", "detcheck", "run", "--endpoint", url, "--no-chat-template",
            "--batch-sizes", LOADS, "--completions", str(COMPLETIONS), "--repeat-trial", "5",
            "--max-new-tokens", str(new_tokens()), "--out", str(out),
        ]  # fmt: skip
        done = subprocess.run(
            command, env=with_detcheck(), capture_output=True, text=True, check=False,
            timeout=max(clock.left(), 10) + 60,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"detcheck run ended with {done.returncode}: {done.stderr[-200:]}")
        return {"promised": arm.invariant, **answers_in(out)}


def answers_in(run: Path) -> dict[str, Any]:
    """Distinct answers of a run, over all of its loads."""
    import detcheck

    variants = [index for index in detcheck.load(run).completions.variant.tolist() if index >= 0]
    return {"completions": len(variants), "distinct": len(set(variants))}


@contextmanager
def served(arm: Arm, model: Path, seconds: float) -> Iterator[str]:
    """Within this context the server answers at the URL that it gives; ended afterwards."""
    port = free_port()
    arguments = [each.format(model=model, port=port) for each in arm.command]
    process = subprocess.Popen(
        [sys.executable, *arguments], env={**with_detcheck(), **arm.environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}", process, seconds)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Raises RuntimeError if the server ends, or does not answer in time."""
    clock = Clock(seconds)
    while not clock.spent():
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as reply:
                json.loads(reply.read())
                return
        except (OSError, ValueError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {seconds:.0f} s")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_detcheck() -> dict[str, str]:
    """The environment, with detcheck importable also if it is not installed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}


STAND_IN = Arm(
    "a server that answers at once", "json",
    (str(ROOT / "experiments" / "instant_server.py"), "--port", "{port}"), True,
)  # fmt: skip
"""For a dry run."""


def show_served(result: dict[str, Any]) -> list[str]:
    """One line a server and model."""
    if not result["rows"] and not result["failures"]:
        return ["neither vLLM nor SGLang can be imported here"]
    lines = ["| server | model | completions | distinct answers | promised |", "|---" * 5 + "|"]
    lines += [
        f"| {row['arm']} | {row['model']} | {row['completions']} | {row['distinct']} | "
        f"{'one' if row['promised'] else '–'} |"
        for row in result["rows"]
    ]
    return lines
