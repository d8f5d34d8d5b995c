"""What the sections run on: the GPU, or in a dry run a stand-in for it.

A dry run goes through every section on a machine without a GPU. Tensors are on the CPU, kernels
run in Triton's interpreter, sizes are cut down, lists are cut short, and nothing is timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
DRY_RUN_VARIABLE = "DETCHECK_GPU_DRY_RUN"


class Gpu:
    """The first CUDA GPU."""

    name = "cuda"

    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        return torch.cuda.get_device_capability()

    def synchronize(self) -> None:
        """Wait until the GPU has done all that was launched."""
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        """Give unused memory back to the GPU."""
        torch.cuda.empty_cache()

    def median_ms(self, function: Callable[[], Any], rep: int = 25) -> float:
        """Median milliseconds of a call; the L2 cache is overwritten before each."""
        from triton.testing import do_bench

        return float(do_bench(function, warmup=8, rep=rep, return_mode="median"))

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

    def is_lost(self, error: Exception) -> bool:
        """Whether the GPU answers this process no more after an error."""
        return isinstance(error, torch.AcceleratorError)


class DryRun(Gpu):
    """Stands in for a GPU."""

    name = "cpu"

    def capability(self) -> tuple[int, int]:
        """That of Hopper."""
        return (9, 0)

    def synchronize(self) -> None:
        """Nothing runs beside the caller."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def median_ms(self, function: Callable[[], Any], rep: int = 25) -> float:
        """Calls the function once; returns a millisecond, which nobody measured."""
        function()
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
