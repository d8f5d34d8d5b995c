"""How every kernel here is launched: compile options, the device, and launches that are repeated.

Triton's own launcher looks at every argument of every launch, which costs the host about 14 µs. A
decoding step of a model launches some hundred kernels whose sizes and strides are those of the
step before. `Repeated` keeps such a kernel, compiled, with the arguments that stay the same, and
hands the addresses of the tensors straight to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from math import gcd
from typing import Any, TypeVar

import torch

NUMERICS: dict[str, Any] = {"enable_fp_fusion": False}
"""Compile options of every kernel. By default the compiler contracts `a * b + c` as it sees fit,
differently in two kernels that must agree, and the default changes between versions of Triton.
Kernels write `tl.fma` where they want a fused multiply-add."""
ALIGNMENT_BYTES = 16
"""Kernels are compiled for addresses that are multiples of this; others get another binary."""
HOPPER_PROCESSORS = 132

Grid = tuple[int, int, int]
StandIn = Callable[[Any, Grid, tuple[Any, ...], dict[str, Any]], Any]
"""Takes (kernel, grid, arguments, named arguments) in place of a launch."""

_stand_ins: list[StandIn] = []

current_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", lambda index: 0
)
"""Address of the current stream of a device, by its index."""
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: -1)
"""Index of the current device; -1 without CUDA, as `Tensor.get_device` gives on the CPU."""


def start(kernel: Any, grid: Grid, *args: Any, **named: Any) -> Any:
    """Launch `kernel` over `grid`; returns the compiled kernel, None in Triton's interpreter."""
    if _stand_ins:
        return _stand_ins[-1](kernel, grid, args, named)
    return kernel[grid](*args, **named)


@contextmanager
def launches_to(stand_in: StandIn) -> Iterator[None]:
    """Within this context every launch goes to `stand_in`, and no kernel runs."""
    _stand_ins.append(stand_in)
    try:
        yield
    finally:
        _stand_ins.remove(stand_in)


def room(
    like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> Callable[[], torch.Tensor]:
    """A function that allocates contiguous tensors of one shape, on the device of `like`.

    Their dtype is that of `like` by default. It costs the host two thirds of `Tensor.new_empty`.
    """
    shape = tuple(shape)
    strides = torch.empty(shape, device="meta").stride()
    return partial(
        torch.empty_strided, shape, strides, dtype=dtype or like.dtype, device=like.device
    )


class Repeated:
    """A kernel whose arguments stay the same but for tensors and a few numbers.

    The kernel's parameters are, in this order: tensors, numbers that are not specialised, numbers
    that stay the same, compile-time constants. The first launch goes through Triton. Later ones
    hand the addresses straight to the compiled kernel, if every tensor is aligned as it was
    compiled for, and unless a profiler wants to hear of each launch from Triton.
    """

    __slots__ = ("_constant", "_device", "_hooks", "_kernel", "_launch", "_named", "_rest")

    def __init__(self, kernel: Any, constant: tuple[float, ...], named: dict[str, Any]):
        """`constant` are the numbers that stay the same; `named` the constants and options."""
        self._kernel = kernel
        self._constant = constant
        self._named = named
        self._rest = (*constant, *(named[name] for name in kernel.arg_names if name in named))
        self._hooks = _launch_hooks()
        self._launch: Callable[[Grid, int, tuple[Any, ...]], None] | None = None
        self._device: int | None = None
        """Index of the GPU that the compiled kernel is loaded on; None before the first launch."""

    def __call__(
        self, grid: Grid, tensors: tuple[torch.Tensor, ...], numbers: tuple[int, ...] = ()
    ) -> None:
        """Launch on the current stream of the tensors' GPU."""
        device = tensors[0].get_device()
        if not (_stand_ins or self._hooks.calls) and self._device == device == current_device():
            addresses = tuple(map(torch.Tensor.data_ptr, tensors))
            if self._launch and gcd(ALIGNMENT_BYTES, *addresses) == ALIGNMENT_BYTES:
                self._launch(grid, current_stream(device), (*addresses, *numbers, *self._rest))
                return
        with on_device(tensors[0]):
            compiled = start(self._kernel, grid, *tensors, *numbers, *self._constant, **self._named)
        if compiled is not None and not any(x.data_ptr() % ALIGNMENT_BYTES for x in tensors):
            self._launch = _straight_to_the_driver(compiled)
            self._device = device


def _straight_to_the_driver(compiled: Any) -> Callable[[Grid, int, tuple[Any, ...]], None]:
    """A function that launches a compiled kernel: grid, stream, and all arguments in order.

    Triton's versions differ in what the driver's `launch` takes; those known are 3.6 and 3.9. A
    kernel with scratch memory, and one of another version, goes through Triton's launcher, which
    costs the host 0.7 µs more.
    """
    launcher, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    nothing = (None, None, None)  # no metadata for a profiler, no hooks before and after
    if not (launcher.global_scratch_size or launcher.profile_scratch_size):
        launch = launcher.launch
        flags = function, launcher.launch_cooperative_grid, launcher.launch_pdl
        if hasattr(launcher, "kernel_signature"):  # 3.9
            types = launcher.arg_annotations, launcher.kernel_signature
            fixed = (*flags, metadata, *nothing, None, None, *types)
            return lambda grid, stream, arguments: launch(*grid, stream, *fixed, arguments)
        if _version().startswith("3.6."):
            before = (*flags, None, None, metadata, *nothing)
            return lambda grid, stream, arguments: launch(*grid, stream, *before, *arguments)
    return lambda grid, stream, arguments: launcher(
        *grid, stream, function, metadata, *nothing, *arguments
    )


Made = TypeVar("Made")
MOST_KEPT = 8192
"""Entries of a table of `keep`."""


def keep(table: dict[Any, Made], kind: Any, made: Made) -> None:
    """Put `made` into a table of launches by kind of operands. A full table is emptied first."""
    if len(table) >= MOST_KEPT:
        table.clear()
    table[kind] = made


@cache
def _version() -> str:
    from triton import __version__

    return str(__version__)


@cache
def _launch_hooks() -> Any:
    from triton import knobs

    return knobs.runtime.launch_enter_hook


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one for a launch; no effect in Triton's interpreter."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


def capturing() -> bool:
    """True if the current stream records a CUDA graph, in which nothing may wait for the GPU."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of Hopper for other devices, on which its tiles are tested."""
    return _capability(device.index) if device.type == "cuda" else (9, 0)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; as Hopper has for the meta device."""
    if device.type == "meta":
        return HOPPER_PROCESSORS
    return _processors(device.index) if device.type == "cuda" else 4


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)
