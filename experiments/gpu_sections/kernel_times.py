"""Which kernels a call launches, and how long each takes the device, by PyTorch's profiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_sections.device import device

KINDS = {
    "attention": ("attention", "merge_kernel", "flash", "fmha", "sdpa"),
    "products": (
        *("product_kernel", "descriptor_kernel", "grouped_kernel"),
        *("nvjet", "gemm", "gemv", "cutlass", "cublas", "splitk"),
    ),
    "copies": ("memcpy", "memset", "copy", "catarray", "gather", "index", "scatter"),
}
"""Words in the names of kernels, the first that fits; the others are norms and pointwise ops."""


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel."""

    name: str
    launches: float
    ms: float


def kernel_times(function: Callable[[], Any]) -> list[KernelTime]:
    """The kernels and copies of a call, the longest first; none in a dry run."""
    if device.name == "cpu":
        function()
        return []
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it forgets events of earlier profiles
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            function()
            device.synchronize()
        found = [
            KernelTime(str(event.key), event.count, event.self_device_time_total / 1000)
            for event in profiler.key_averages()
            if event.device_type != DeviceType.CPU and event.self_device_time_total > 0
        ]
    return sorted(found, key=lambda kernel: -kernel.ms)


def a_step(few: list[KernelTime], more: list[KernelTime], steps: int) -> list[KernelTime]:
    """What one step adds: `more` are the kernels of `steps` steps more than `few`."""
    before = {kernel.name: kernel for kernel in few}
    nothing = KernelTime("", 0, 0.0)
    found = [
        KernelTime(
            kernel.name,
            (kernel.launches - before.get(kernel.name, nothing).launches) / steps,
            (kernel.ms - before.get(kernel.name, nothing).ms) / steps,
        )
        for kernel in more
    ]
    return sorted((each for each in found if each.launches > 0), key=lambda kernel: -kernel.ms)


def by_kind(kernels: list[KernelTime]) -> dict[str, float]:
    """Milliseconds by kind of kernel."""
    found = dict.fromkeys((*KINDS, "other"), 0.0)
    for kernel in kernels:
        found[kind_of(kernel.name)] += kernel.ms
    return found


def kind_of(name: str) -> str:
    """One of KINDS, or `other`."""
    words = name.lower()
    return next(
        (kind for kind, parts in KINDS.items() if any(part in words for part in parts)), "other"
    )
