"""The stock CPU kernels of aten ops, which can be called while they are overridden."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

stock_attention = F.scaled_dot_product_attention
"""PyTorch's attention, whatever a mode has put in its place."""


def stock_kernel(op: str) -> Callable[..., Any]:
    """The CPU kernel that PyTorch registered for `op`, such as `mean.dim`.

    It takes the op's arguments; autograd and dispatch modes do not see the call. Call this when a
    module is imported, before anything is overridden.
    """
    kernel = torch.library.get_kernel(f"aten::{op}", "CPU")
    return partial(kernel.call_boxed, torch._C.DispatchKeySet(torch._C.DispatchKey.CPU))
