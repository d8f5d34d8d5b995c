"""The device's time of a call, on a device that is played: its clock and the host's are numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import timing
from gpu_sections.device import Gpu
from gpu_sections.kernel_times import KernelTime, a_step, by_kind, kind_of

HOST_MS, FLUSH_MS = 0.1, 0.05


class PlayedCuda:
    """In place of `torch.cuda`: calls outside a graph take the host's time if that is longer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.current: Any = "default"
        self.capturing: PlayedGraph | None = None
        self.reserved = 0
        self.generator_waits = False
        """True after a capture that failed, until one ends well."""

    def Stream(self) -> object:  # noqa: N802  (torch's name)
        return object()

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self) -> PlayedGraph:  # noqa: N802
        return PlayedGraph(self)

    def Event(self, *, enable_timing: bool) -> PlayedEvent:  # noqa: N802
        assert enable_timing
        return PlayedEvent(self)

    def synchronize(self) -> None:
        if self.capturing is not None:
            self.capturing.broken = True
            raise RuntimeError("operation not permitted when stream is capturing")

    def memory_reserved(self) -> int:
        return self.reserved

    def memory_allocated(self) -> int:
        return 0

    def empty_cache(self) -> None:
        self.reserved = 0

    def call(self, device_ms: float) -> Callable[[], None]:
        """A call that takes the device `device_ms`, and the host HOST_MS."""

        def launch() -> None:
            if self.capturing is not None:
                self.capturing.calls.append(device_ms)
            else:
                self.now += max(HOST_MS, device_ms)

        return launch


class PlayedGraph:
    def __init__(self, cuda: PlayedCuda) -> None:
        self.cuda = cuda
        self.calls: list[float] = []
        self.broken = False

    def capture_begin(self, *, capture_error_mode: str) -> None:
        assert self.cuda.current != "default", "the default stream cannot be captured"
        self.cuda.capturing, self.cuda.generator_waits = self, True

    def capture_end(self) -> None:
        self.cuda.capturing = None
        if self.broken:
            raise RuntimeError("the capture was broken")
        self.cuda.generator_waits = False

    def replay(self) -> None:
        self.cuda.now += sum(self.calls)

    def reset(self) -> None:
        self.calls = []


class PlayedEvent:
    def __init__(self, cuda: PlayedCuda) -> None:
        self.cuda = cuda

    def record(self) -> None:
        self.at = self.cuda.now

    def elapsed_time(self, end: PlayedEvent) -> float:
        return end.at - self.at


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedCuda]:
    played = PlayedCuda()
    monkeypatch.setattr(timing, "cuda", played)
    monkeypatch.setattr(timing, "flusher", lambda: played.call(FLUSH_MS))
    monkeypatch.setattr(timing, "harmless", played.call(0.001))
    caches = (timing.side_stream, timing.flushes)
    for cache in caches:
        cache.cache_clear()
    yield played
    for cache in caches:
        cache.cache_clear()


def test_a_short_call_takes_the_time_of_the_device(cuda: PlayedCuda) -> None:
    assert timing.median_ms([cuda.call(0.01)], 25) == pytest.approx(0.01)


def test_a_clock_around_the_call_shows_the_host(cuda: PlayedCuda) -> None:
    """The twin: without a graph the same call seems to take ten times as long."""
    stream = timing.side_stream()
    assert timing.warmed_up([cuda.call(0.01)], stream) == pytest.approx(HOST_MS)


def test_a_long_call_takes_its_time(cuda: PlayedCuda) -> None:
    assert timing.median_ms([cuda.call(30.0)], 25) == pytest.approx(30)


@pytest.mark.parametrize("number", [3, 64])
def test_calls_in_turn_are_all_captured(cuda: PlayedCuda, number: int) -> None:
    """Their mean; nothing is read between them."""
    calls = [cuda.call(0.01 * (1 + index)) for index in range(number)]
    assert timing.median_ms(calls, 25) == pytest.approx(0.01 * (number + 1) / 2)


def test_a_call_that_cannot_be_captured_says_so_and_leaves_nothing_behind(
    cuda: PlayedCuda,
) -> None:
    with pytest.raises(timing.CannotCaptureError, match="capture"):
        timing.median_ms([cuda.synchronize], 25)
    assert cuda.current == "default"
    assert not cuda.generator_waits
    assert timing.median_ms([cuda.call(0.01)], 25) == pytest.approx(0.01)


def test_it_is_timed_with_the_host_then_and_noted(
    cuda: PlayedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton.testing.do_bench", lambda call, **_: 0.5)
    gpu = Gpu()
    assert gpu.median_ms(cuda.synchronize) == 0.5
    assert len(gpu.take_uncaptured()) == 1
    assert gpu.median_ms(cuda.call(0.01)) == pytest.approx(0.01)
    assert gpu.take_uncaptured() == []


def test_a_call_that_the_card_does_not_take_raises_its_own_error(cuda: PlayedCuda) -> None:
    def refused() -> None:
        raise ValueError("out of shared memory")

    with pytest.raises(ValueError, match="shared memory"):
        Gpu().median_ms(refused)


@pytest.mark.parametrize("kept", [1 << 20, 9 << 30])
def test_memory_that_graphs_leave_is_given_back_if_it_is_much(cuda: PlayedCuda, kept: int) -> None:
    cuda.reserved = kept
    timing.median_ms([cuda.call(0.01)], 25)
    assert cuda.reserved == (kept if kept < 1 << 30 else 0)


def test_the_kernels_of_a_step_are_those_that_more_steps_add() -> None:
    few = [KernelTime("product_kernel", 10, 5.0), KernelTime("prompt_only", 3, 9.0)]
    more = [KernelTime("product_kernel", 30, 9.0), KernelTime("prompt_only", 3, 9.1)]
    more.append(KernelTime("attention_kernel", 4, 1.0))
    step = a_step(few, more, 2)
    assert step == [KernelTime("product_kernel", 10, 2.0), KernelTime("attention_kernel", 2, 0.5)]
    assert by_kind(step) == {"attention": 0.5, "products": 2.0, "copies": 0.0, "other": 0.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("descriptor_kernel", "products"),
        ("nvjet_sm90_tst_64x8_64x16_2x1_v_bz_TNT", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "products"),
        ("merge_kernel", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<>", "attention"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("void at::native::reduce_kernel<512, 1>", "other"),
        ("silu_times_kernel", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind
