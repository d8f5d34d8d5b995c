"""Starts the processes that compile and measure, keeps each result, ends what hangs. No torch."""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
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
"""For a section that ought to stop, until it looks at the clock again."""
MOST_COMPILERS = 14
LOOKING = 4
"""Processes that look for compiled kernels: starting one takes longer than its share."""


def measure(options: argparse.Namespace, whole: Clock, folder: Path) -> Report:
    """Measure all sections that are asked for, as far as the time goes.

    A result is written when its section ends, so whatever there is when the time is up is valid.
    """
    sections = plan.named(options.sections)
    report: Report = {"environment": {}, "sections": {}, "dry_run": options.dry_run}
    report |= {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "command": command_line()}
    started = time.monotonic()
    if not (options.dry_run or options.compiled):
        compile_ahead(Clock(min(COMPILING_S, whole.left())))
    report["compiling_s"] = time.monotonic() - started
    report["plan"] = plan.table(sections, whole.left())
    print("\n".join(report["plan"]), file=sys.stderr, flush=True)
    names = [section.name for section in sections]
    plain = False
    while names and whole.left() > 0:
        lost = one_child(names, options, whole, report, folder, plain)
        done = [name for name in names if name in report["sections"]]
        if not done:  # it did not even begin
            break
        names = [name for name in names if name not in done]
        if lost is not None and not plain:  # perhaps the plain kernels do not fail
            plain, names = True, [lost, *names]
            report["sections"][f"{lost}, first try"] = report["sections"].pop(lost)
    return report


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["python", "experiments/gpu.py", *sys.argv[1:]])


def compile_ahead(clock: Clock) -> None:
    """Fill Triton's cache on disk, by as many processes as there are processors.

    A few processes look first whether it holds all kernels, and stop at one that it does not hold.
    """
    count = max(1, min(MOST_COMPILERS, (os.cpu_count() or 2) - 1))
    print("looking for compiled kernels …", file=sys.stderr, flush=True)
    if all(code == 0 for code in exit_codes("--find", min(LOOKING, count), clock)):
        return
    print(f"compiling, {count} processes …", file=sys.stderr, flush=True)
    exit_codes("--compile", count, clock)


def exit_codes(option: str, count: int, clock: Clock) -> list[int]:
    """The exit codes of `count` processes that share the kernels out; those too slow are ended."""
    command = [sys.executable, str(SCRIPT), option]
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
    return [process.returncode for process in running]


def one_child(
    names: list[str],
    options: argparse.Namespace,
    whole: Clock,
    report: Report,
    folder: Path,
    plain: bool,
) -> str | None:
    """Let one process measure `names`, until it is through or has to be ended.

    Returns the section in which it was lost, or whose products were found wrong; None if it is
    through.
    """
    command = [sys.executable, str(SCRIPT), "--child", "--sections", ",".join(names)]
    command += ["--minutes", str(whole.left() / 60)]
    command += ["--plain"] if plain else []
    command += ["--model", options.model] if options.model else []
    command += ["--out", str(folder)]
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
                if products_are_wrong(event["result"]) and not plain and not options.dry_run:
                    process.kill()
                    return str(event["end"])
        process.kill()  # it is through, or hangs
    if current is not None:
        text = "it was ended: it hung, or took its process with it"
        report["sections"][current] = {"error": text, "table": [f"error: {text}"], "plain": plain}
        write(report, folder)
    return current


def products_are_wrong(result: dict[str, Any]) -> bool:
    """Whether later sections would be measured with kernels that give wrong products."""
    products = ("matmul", "addmm", "invariant mm")
    return any(failure.startswith(products) for failure in result.get("failures", ()))


def events(lines: IO[str], whole: Clock) -> Iterator[dict[str, Any]]:
    """The events of a child, until it ends or is silent for too long."""
    arrived: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        with suppress(ValueError):  # the child was ended, and its output was closed
            for line in lines:
                arrived.put(line)
        arrived.put(None)

    threading.Thread(target=listen, daemon=True).start()
    patience = Clock(STARTING_S)
    while True:
        try:
            line = arrived.get(timeout=max(0.0, min(patience.left(), whole.left() + GRACE_S)))
        except queue.Empty:
            return
        if line is None:
            return
        try:
            event = json.loads(line)
        except ValueError:  # a line that a library printed
            continue
        if not isinstance(event, dict):
            continue
        patience = Clock(event.get("seconds", STARTING_S) + GRACE_S)
        yield event
