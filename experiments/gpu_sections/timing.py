"""The time that calls take on the GPU alone, however long the host takes to launch them.

Calls are captured in a CUDA graph. The graph is replayed between two events, so that the host
launches all of them at once. A decoding step's calls take the device a few microseconds and the
host tens of them, and a clock around single calls would show the host's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch

Call = Callable[[], Any]
LENGTHS = (20, 10, 5, 2, 1)
"""Calls that a graph may hold."""
GRAPH_MS = 2.0
"""A graph holds as many calls as take about this long."""
LEAST_REPLAYS, MOST_REPLAYS = 5, 10
LEAST_MS = 1e-4
LEAST_SHARE = 0.01
"""Of a graph's time that calls must take beside the readings before them."""
FLUSHED_BYTES = 128 << 20
"""Read before a call to drive its operands out of the L2 cache, which has 50 MB on an H100."""
MOST_UNUSED_BYTES = 8 << 30
cuda: Any = torch.cuda


class CannotCaptureError(Exception):
    """The calls do something that a graph cannot hold, such as waiting for the device."""


def median_ms(calls: Sequence[Call], rep: float) -> float:
    """Median milliseconds of one of `calls`, from replays that take about `rep` milliseconds.

    One call is repeated in its graph. Before each repetition other memory is read, so that its
    operands come from the GPU's memory, and the time of that reading is taken off again. Several
    calls follow each other without that: their operands together should exceed the L2 cache.

    Raises CannotCaptureError, also if a call is lost in the noise of the reading before it. Raises
    whatever the calls raise outside a graph.
    """
    stream = side_stream()
    estimate = warmed_up(calls, stream)
    flush = flusher() if len(calls) == 1 else None
    number = next(n for n in LENGTHS if n * estimate <= GRAPH_MS or n == 1)
    in_order = list(calls) * max(1, number // len(calls))
    graph = captured([step for call in in_order for step in with_flush(flush, call)], stream)
    try:
        count = replays_in(rep, estimate * len(in_order))
        whole = replayed_ms(graph, count, stream)
        reading = replayed_ms(flushes(len(in_order)), count, stream) if flush else 0.0
    finally:
        graph.reset()
        tidy()
    if whole - reading < LEAST_SHARE * whole:
        raise CannotCaptureError("a call takes less than the noise of the reading before it")
    return (whole - reading) / len(in_order)


def with_flush(flush: Call | None, call: Call) -> list[Call]:
    """The steps that one call becomes in a graph."""
    return [call] if flush is None else [flush, call]


def replays_in(rep: float, graph_ms: float) -> int:
    """How often a graph is replayed."""
    return max(LEAST_REPLAYS, min(MOST_REPLAYS, int(rep / max(graph_ms, LEAST_MS))))


def warmed_up(calls: Sequence[Call], stream: Any) -> float:
    """Call each where it will be captured: kernels are compiled, tiles chosen, memory is taken.

    Returns the milliseconds of a call, those of the host included.
    """
    cuda.synchronize()
    with cuda.stream(stream):
        for call in (*calls, calls[0]):
            call()
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[0]()
        end.record()
        cuda.synchronize()
    return max(LEAST_MS, float(start.elapsed_time(end)))


def captured(steps: Sequence[Call], stream: Any) -> Any:
    """A graph of `steps`, captured on `stream`.

    Not by `torch.cuda.graph`: it empties PyTorch's cache of memory, and if a capture fails, it
    leaves the side stream the current one.
    """
    graph = cuda.CUDAGraph()
    try:
        with cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for step in steps:
                    step()
            finally:
                graph.capture_end()
        cuda.synchronize()
    except Exception as error:
        recover(stream)
        raise CannotCaptureError(f"{type(error).__name__}: {error}"[:200]) from error
    return graph


def recover(stream: Any) -> None:
    """Capture something harmless after a capture that failed.

    PyTorch's random generator still waits for the end of a failed capture, and would refuse to
    give numbers.
    """
    with suppress(Exception), cuda.stream(stream):
        graph = cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            harmless()
        finally:
            graph.capture_end()


def replayed_ms(graph: Any, count: int, stream: Any) -> float:
    """Median milliseconds of a replay."""
    events = [[cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    with cuda.stream(stream):
        graph.replay()  # the first one also uploads it
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        cuda.synchronize()
    return statistics.median(float(start.elapsed_time(end)) for start, end in events)


def tidy() -> None:
    """Give memory back if much of it is unused: each graph leaves that of its results."""
    if cuda.memory_reserved() - cuda.memory_allocated() > MOST_UNUSED_BYTES:
        cuda.empty_cache()


@cache
def side_stream() -> Any:
    """The stream that all graphs are captured on: cuBLAS keeps a workspace for each."""
    return cuda.Stream()


@cache
def flushes(number: int) -> Any:
    """A graph of `number` readings."""
    return captured([flusher()] * number, side_stream())


@cache
def flusher() -> Call:
    """A call that reads more than the L2 cache holds. It leaves nothing there to write back."""
    data = torch.zeros(1024, FLUSHED_BYTES // 4096, device="cuda")
    sums = torch.empty(1024, device="cuda")
    read = torch.sum
    read(data, 1, out=sums)
    return lambda: read(data, 1, out=sums)


def harmless() -> None:
    """A small kernel."""
    torch.zeros(1, device="cuda").add_(1)
