"""The stock CPU kernels of aten ops, beneath whatever overrides them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def stock_kernel(op: str) -> Callable[..., Any]:
    """The CPU kernel that PyTorch registered for `op`, such as `mean.dim`; takes its arguments.

    To be asked for before anything is overridden, when a module is imported.
    """
    kernel = torch.library.get_kernel(f"aten::{op}", "CPU")
    return partial(kernel.call_boxed, torch._C.DispatchKeySet(torch._C.DispatchKey.CPU))
