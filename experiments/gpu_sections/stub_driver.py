"""A driver for Triton on a machine without a GPU: kernels are compiled, launches are noted.

Everything of a launch is real but its last step: Triton binds the arguments, compiles for Hopper,
loads the binary into this driver, and calls the driver's `launch` with what it would give to CUDA.
Tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as active

from detcheck.kernels.triton import launch

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 232448
"""Shared memory that a program may have on Hopper."""
Launch = Callable[..., object]
_receivers: list[Launch] = []


BASE_ARGUMENTS = 13
"""Of `launch` in Triton 3.6, before those of the kernel."""


def _deliver(*given: Any) -> None:
    """Kernels keep the `launch` that they were loaded with, so it looks for the receiver here."""
    _receivers[-1](*given)


def _deliver_apart(*given: Any) -> None:
    """In Triton 3.6 a kernel's arguments are arguments of `launch`. The receiver gets a tuple."""
    _receivers[-1](*given[:BASE_ARGUMENTS], given[BASE_ARGUMENTS:])


class Launcher:
    """In place of the launcher that Triton 3.6 compiles for each signature."""

    launch = staticmethod(_deliver_apart)


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
    stock_driver = active._active
    active.set_active(StubDriver())
    _receivers.append(receiver)
    try:
        with ExitStack() as patches:
            for owner, name, value in stand_ins():
                patches.enter_context(mock.patch.object(owner, name, value, create=True))
            yield
    finally:
        _receivers.pop()
        active._active = stock_driver


def stand_ins() -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value) of all that asks for a GPU or for its driver's library."""
    arguments = {"PyKernelArg": _Argument, "ARG_CONSTEXPR": 0, "ARG_KERNEL": 1, "ARG_TUPLE": 2}
    yield from ((nvidia, name, value) for name, value in arguments.items())
    if hasattr(nvidia, "make_launcher"):  # 3.6
        yield nvidia, "compile_module_from_src", lambda **_: Launcher
        yield nvidia, "library_dirs", list
    yield launch, "current_device", lambda: -1
    yield launch, "current_stream", lambda index: 0
