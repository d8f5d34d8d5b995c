"""Which calls fused forms serve, and how they are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import is_grad_enabled
from torch.nn import functional as F
from torch.nn.modules import linear as torch_linear
from torch.nn.modules import module as torch_module

from detcheck.kernels.cpu.linear import is_observed, is_transformed
from detcheck.kernels.cpu.rows import CACHE_LINE_BYTES
from detcheck.kernels.triton import why_unavailable

Forward = Callable[..., Any]
Calls = Mapping[str, Counter[str]]
"""Calls of the overrides, by op family and op."""
Ops = Mapping[str, Mapping[str, int]]
"""How many calls of overrides one fused call stands for, by op family and op."""

HOOKS_OF_EVERY_MODULE: tuple[dict[int, Any], ...] = tuple(
    getattr(torch_module, f"_global_{name}_hooks")
    for name in ("forward", "forward_pre", "backward", "backward_pre")
)


class Linear:
    """The function that stands for `F.linear` while fused forms may serve."""

    function: Any = None
    """None: no fused form may serve, as no mode is on."""


LINEAR = Linear()


def forms_on_gpu() -> Any:
    """The module with the forms on a GPU; None if this machine has no kernels for one.

    It imports Triton.
    """
    if why_unavailable() is not None:
        return None
    from detcheck.kernels.fused import gpu

    return gpu


def is_plain(x: torch.Tensor) -> bool:
    """True for a contiguous float tensor on the CPU, in inference that nothing watches or changes.

    So: while a mode is on, without gradients, hooks of every module, dispatch or function modes,
    autocast, `torch.func` or tracing, and if nobody replaced what `nn.Linear` calls.
    """
    return (
        type(x) is torch.Tensor
        and x.is_cpu
        and not is_grad_enabled()
        and F.linear is LINEAR.function
        and x.is_floating_point()
        and not x.is_nested
        and x.is_contiguous()
        and not x.data_ptr() % CACHE_LINE_BYTES
        and not is_observed()
        and not is_transformed()
        and not any(HOOKS_OF_EVERY_MODULE)
        and getattr(torch.nn.Linear.forward, "__globals__", None) is vars(torch_linear)
        and not torch._C._is_tracing()
    )


def counter(calls: Calls, *ops: Ops) -> Callable[[], None]:
    """A function that counts one fused call in `calls`: as so many calls of all these `ops`."""
    added = [
        (calls[family], op, n)
        for each in ops
        for family, own in each.items()
        for op, n in own.items()
    ]

    def count() -> None:
        for counted, op, n in added:
            counted[op] += n

    return count
