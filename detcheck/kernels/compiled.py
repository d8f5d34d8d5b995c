"""Compiled functions while a mode is on: they run eagerly.

Code that `torch.compile` made calls kernels of its own and fuses reductions, which no mode can
override. So PyTorch is told to run the original Python instead, until the last mode ends. A mode
cannot be entered inside a compiled function, and `torch.jit.trace` cannot record kernels of a mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from detcheck.errors import UsageError

_INSIDE = (
    "A batch-invariant mode cannot be entered inside a compiled function: enter it before the "
    "function is called."
)
_lock = threading.Lock()
_holders = 0
_stance: Any = None
_jit: Any = torch.jit
_stock_trace = torch.jit.trace


def run_eagerly() -> Callable[[], None]:
    """Let every compiled function run eagerly, until the returned function is called.

    Raises UsageError inside a compiled function.
    """
    global _holders, _stance  # noqa: PLW0603  (the stance itself is one per process)
    with _lock:
        if _holders == 0:
            _stance = _force_eager()
            _jit.trace = _refuse_trace
        _holders += 1
    return _release


def as_written(module: Any) -> Any:
    """The module that `torch.compile` was given; any other module as it is."""
    return getattr(module, "_orig_mod", module)


def _release() -> None:
    global _holders  # noqa: PLW0603
    with _lock:
        _holders -= 1
        if _holders == 0:
            _stance.__exit__(None, None, None)
            _jit.trace = _stock_trace


def _force_eager() -> Any:
    try:
        if not torch.compiler.is_compiling():
            return torch.compiler.set_stance("force_eager")
    except RuntimeError as error:
        raise UsageError(_INSIDE) from error
    raise UsageError(_INSIDE)


def _refuse_trace(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise UsageError(
        "`torch.jit.trace` cannot record batch-invariant kernels: trace before the mode is entered."
    )
