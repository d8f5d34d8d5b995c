"""A driver for Triton on a machine without a GPU: kernels are compiled, launches are noted.

Everything of a launch is real but its last step: Triton binds the arguments, compiles for Hopper,
loads the binary into this driver, and calls the driver's `launch` with what it would give to CUDA.
Tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as active

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 232448
"""Shared memory that a program may have on Hopper."""
Launch = Callable[..., object]
_receivers: list[Launch] = []


def _deliver(*given: Any) -> None:
    """Kernels keep the `launch` that they were loaded with, so it looks for the receiver here."""
    _receivers[-1](*given)


class Utilities:
    """What Triton asks the CUDA driver for."""

    launch = staticmethod(_deliver)

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        """Handles of module and function, registers, spills, threads; none of them is real."""
        return 1, 2, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        """Nothing was loaded."""

    def get_device_properties(self, index: int) -> dict[str, int]:
        """Of an H100."""
        return {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132}

    def build_signature_metadata(self, signature: Any) -> bytes:
        """One byte an argument."""
        return bytes(len(signature))


class StubDriver:
    """An active driver with one Hopper GPU."""

    def __init__(self) -> None:
        self.utils = Utilities()
        self.launcher_cls = nvidia.CudaLauncher

    def get_current_device(self) -> int:
        """Index of the only device."""
        return 0

    def get_current_stream(self, index: int) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What kernels are compiled for."""
        return HOPPER

    def allocate_default_profile_scratch(self, size: int, align: int, stream: int) -> None:
        """No kernel here is profiled."""


class _Argument:
    """In place of the driver's C type that tells which arguments are constants."""

    def __init__(self, nested_tuple: Any, type: int):
        self.nested_tuple, self.type = nested_tuple, type


@contextmanager
def stub_driver(receiver: Launch) -> Iterator[None]:
    """Within this context `receiver` gets all arguments of each launch, in place of the GPU."""
    names = ("PyKernelArg", "ARG_CONSTEXPR", "ARG_KERNEL", "ARG_TUPLE")
    stock = {name: getattr(nvidia, name, None) for name in names}
    for name, value in zip(names, (_Argument, 0, 1, 2), strict=True):
        setattr(nvidia, name, value)
    stock_driver = active._active
    active.set_active(StubDriver())
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.pop()
        active._active = stock_driver
        for name, value in stock.items():
            setattr(nvidia, name, value)
