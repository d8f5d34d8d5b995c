"""Compiled functions while a mode is on: they run eagerly.

Code that `torch.compile` made calls kernels of its own and fuses reductions, which no mode can
override. So PyTorch is told to run the original Python instead, until the last mode ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

_lock = threading.Lock()
_holders = 0
_stance: Any = None


def run_eagerly() -> Callable[[], None]:
    """Let every compiled function run eagerly, until the returned function is called."""
    global _holders, _stance  # noqa: PLW0603  (the stance itself is one per process)
    with _lock:
        if _holders == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _holders += 1
    return _release


def _release() -> None:
    global _holders  # noqa: PLW0603
    with _lock:
        _holders -= 1
        if _holders == 0:
            _stance.__exit__(None, None, None)
