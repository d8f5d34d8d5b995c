"""Starts what compiles and what measures, keeps each result, and ends what hangs. No torch."""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gpu_sections import plan
from gpu_sections.clock import Clock
from gpu_sections.report import Report, write

SCRIPT = Path(__file__).parents[1] / "gpu.py"
COMPILING_S = 75
STARTING_S = 60
"""For importing torch and finding the GPU."""
GRACE_S = 20
"""For a section that ought to stop, to reach the point where it looks at the clock."""
MOST_COMPILERS = 14


def measure(options: argparse.Namespace, whole: Clock, folder: Path) -> Report:
    """Measure all sections that are asked for, as far as the time goes."""
    report: Report = {"environment": {}, "sections": {}}
    started = time.monotonic()
    compile_ahead(Clock(min(COMPILING_S, whole.left())))
    report["compiling_s"] = time.monotonic() - started
    names = [section.name for section in plan.named(options.sections)]
    plain = False
    while names and whole.left() > 0:
        lost = one_child(names, options, whole, report, folder, plain)
        done = [name for name in names if name in report["sections"]]
        if not done:  # it did not even begin
            break
        names = [name for name in names if name not in done]
        if lost is not None and not plain:  # perhaps for what the plain kernels do without
            plain, names = True, [lost, *names]
            report["sections"][f"{lost}, first try"] = report["sections"].pop(lost)
    return report


def compile_ahead(clock: Clock) -> None:
    """Fill Triton's cache on disk, by as many processes as there are processors."""
    count = max(1, min(MOST_COMPILERS, (os.cpu_count() or 2) - 1))
    print(f"compiling, {count} processes …", file=sys.stderr, flush=True)
    command = [sys.executable, str(SCRIPT), "--compile"]
    running = [
        subprocess.Popen([*command, f"{index}/{count}"], stdout=sys.stderr)
        for index in range(count)
    ]
    for process in running:
        try:
            process.wait(max(0.0, clock.left()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def one_child(
    names: list[str],
    options: argparse.Namespace,
    whole: Clock,
    report: Report,
    folder: Path,
    plain: bool,
) -> str | None:
    """Let one process measure `names`, until it is through or has to be ended.

    Returns the section that it was lost in, or whose products were found wrong; None if it is
    through.
    """
    command = [sys.executable, str(SCRIPT), "--child", "--sections", ",".join(names)]
    command += ["--minutes", str(whole.left() / 60)]
    command += ["--plain"] if plain else []
    command += ["--model", options.model] if options.model else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        current: str | None = None
        for event in events(process.stdout, whole):
            if "fatal" in event:
                print(event["fatal"], file=sys.stderr)
            report["environment"] = event.get("environment", report["environment"])
            current = event.get("begin", None if "end" in event else current)
            if "end" in event:
                report["sections"][event["end"]] = event["result"] | {"plain": plain}
                write(report, folder)
                if products_are_wrong(event["result"]) and not plain:
                    process.kill()
                    return str(event["end"])
        process.kill()  # it is through, or hangs
    if current is not None:
        said = "it was ended: it hung, or took its process with it"
        report["sections"][current] = {"error": said, "table": [f"error: {said}"], "plain": plain}
        write(report, folder)
    return current


def products_are_wrong(result: dict[str, Any]) -> bool:
    """Whether what is measured next would be measured with kernels that do not hold."""
    products = ("matmul", "addmm", "invariant mm")
    return any(failure.startswith(products) for failure in result.get("failures", ()))


def events(lines: IO[str], whole: Clock) -> Iterator[dict[str, Any]]:
    """What a child tells, until it ends or says nothing for too long."""
    told: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in lines:
            told.put(line)
        told.put(None)

    threading.Thread(target=listen, daemon=True).start()
    patience = Clock(STARTING_S)
    while True:
        try:
            line = told.get(timeout=max(0.0, min(patience.left(), whole.left() + GRACE_S)))
        except queue.Empty:
            return
        if line is None:
            return
        try:
            event = json.loads(line)
        except ValueError:  # something else that was printed there
            continue
        if not isinstance(event, dict):
            continue
        patience = Clock(event.get("seconds", STARTING_S) + GRACE_S)
        yield event
