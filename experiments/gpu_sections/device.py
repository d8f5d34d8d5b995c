"""What the sections run on: the GPU, or in a dry run a stand-in for it.

A dry run goes through every section on a machine without a GPU. Tensors are on the CPU, kernels
run in Triton's interpreter, sizes are cut down, lists are cut short, and nothing is timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from gpu_sections import timing

Call = Callable[[], Any]
HOST_CALLS = 500
Item = TypeVar("Item")
DRY_RUN_VARIABLE = "DETCHECK_GPU_DRY_RUN"


class Gpu:
    """The first CUDA GPU."""

    name = "cuda"
    host_calls = HOST_CALLS

    def __init__(self) -> None:
        self.uncaptured: list[str] = []
        """Why calls were timed together with the host."""

    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        return torch.cuda.get_device_capability()

    def synchronize(self) -> None:
        """Wait until the GPU has done all that was launched."""
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        """Give unused memory back to the GPU."""
        torch.cuda.empty_cache()

    def median_ms(self, function: Call | Sequence[Call], rep: int = 25) -> float:
        """Median milliseconds that a call takes the device, whatever it takes the host.

        One call finds its operands outside the L2 cache. Several are called in turn: give calls
        of the same work whose operands together exceed that cache. A call that cannot be captured
        in a CUDA graph is timed with the host's part, and is noted in `uncaptured`.
        """
        calls = (function,) if callable(function) else tuple(function)
        try:
            return timing.median_ms(calls, rep)
        except timing.CannotCaptureError as error:
            if self.is_lost(error.__cause__):
                raise error.__cause__ from error
            self.uncaptured.append(str(error))
        from triton.testing import do_bench

        return float(do_bench(calls[0], warmup=8, rep=rep, return_mode="median"))

    def host_us(self, function: Call) -> float:
        """Microseconds that a call takes the host, whatever it takes the device."""
        for _ in range(min(20, self.host_calls)):
            function()
        self.synchronize()
        started = time.perf_counter()
        for _ in range(self.host_calls):
            function()
        elapsed = time.perf_counter() - started
        self.synchronize()
        return elapsed / self.host_calls * 1e6

    def take_uncaptured(self) -> list[str]:
        """Why calls could not be captured, since this was last asked."""
        taken, self.uncaptured = self.uncaptured, []
        return taken

    def size(self, number: int) -> int:
        """A dimension to measure with."""
        return number

    def few(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items to go through."""
        return items

    def random(self, shape: Sequence[int], scale: float) -> torch.Tensor:
        """Normal float32 values."""
        return torch.randn(*shape, device=self.name) * scale

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes to measure."""
        return (torch.bfloat16, torch.float16, torch.float32)

    def is_lost(self, error: BaseException | None) -> bool:
        """Whether the GPU answers this process no more after an error."""
        if not isinstance(error, torch.AcceleratorError):
            return False
        try:
            self.synchronize()
        except Exception:
            return True
        return False  # such as an op that a graph cannot hold


class DryRun(Gpu):
    """Stands in for a GPU."""

    name = "cpu"
    host_calls = 2

    def capability(self) -> tuple[int, int]:
        """That of Hopper."""
        return (9, 0)

    def synchronize(self) -> None:
        """Nothing runs beside the caller."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def median_ms(self, function: Call | Sequence[Call], rep: int = 25) -> float:
        """Calls each function once; returns a millisecond, which nobody measured."""
        for call in (function,) if callable(function) else function:
            call()
        return 1.0

    def size(self, number: int) -> int:
        """At most 79."""
        return number if number <= 64 else 64 + number % 16

    def few(self, items: Sequence[Item]) -> Sequence[Item]:
        """The first two."""
        return items[:2]

    def random(self, shape: Sequence[int], scale: float) -> torch.Tensor:
        """Small whole numbers, whose sums are exact: numpy's products depend on a row's place."""
        return torch.randint(-2, 3, tuple(shape)).float()

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The interpreter's products of bfloat16 are wrong."""
        return (torch.float16, torch.float32)


device: Gpu = DryRun() if os.environ.get(DRY_RUN_VARIABLE) else Gpu()
