"""Watches the first forward passes of a model under a mode, for ops that no kernel covers.

A mode does not know which model it will serve. So while it is on, the first two passes (a prefill
and a decoding step) of the module that is called are watched, and the ops that are not invariant
are kept. The result for a module is remembered: in the next mode it is not watched again.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from detcheck.kernels.compiled import as_written
from detcheck.kernels.fused.classes import FUSED
from detcheck.kernels.length_limits import LengthLimit, length_limits, pass_too_long
from detcheck.kernels.one_length import (
    convolves_padding,
    counts_padding,
    generates,
    has_chunked_state,
)
from detcheck.kernels.op_watch import OpWatch
from detcheck.kernels.short_runs import drops_mask
from detcheck.kernels.triton.launch import capturing

_module_class: Any = torch.nn.Module
NUM_PASSES = 2
"""Forward passes of one module that are watched."""


@dataclass(slots=True)
class Passes:
    """Knowledge of one module that was called from outside any other module."""

    name: str
    """Its class."""
    watched: int = 0
    outside: Counter[str] = field(default_factory=Counter)
    """Calls of ops that no kernel covers, by op."""
    padding_matters: bool = False
    """True if its rows depend on their padding, or may do so."""
    limits: tuple[LengthLimit, ...] = ()
    """The lengths of a row up to which its rows do not depend on the longest one."""


class Listener:
    """One mode's view: the modules that were called while it was on."""

    def __init__(self) -> None:
        self._seen: list[Passes] = []
        self.guarded: Passes | None = None
        """The module whose padding is refused, so that it does not matter."""
        self.too_long: dict[int, str] = {}
        """By module, the fault of the first pass that was longer than a limit."""

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Classes of the modules called whose padding matters and is not refused."""
        return tuple(
            passes.name
            for passes in self._seen
            if passes.padding_matters and passes is not self.guarded
        )

    @property
    def outside(self) -> dict[str, int]:
        """Calls, in the watched passes, of ops that no kernel covers."""
        total: Counter[str] = Counter()
        for passes in self._seen:
            total += passes.outside
        return dict(total)

    def saw(self, passes: Passes) -> bool:
        """Take note of a call; true if this module was watched enough, and called again.

        Every pass of a module with limits is looked at.
        """
        known = any(each is passes for each in self._seen)
        if not known:
            self._seen.append(passes)
        return known and passes.watched >= NUM_PASSES and not passes.limits


class FirstPasses:
    """The modules called while any mode is on. `nn.Module.__call__` is replaced as long as needed.

    When a module that was watched enough is called again, its listener is served and leaves. Later
    modules are not watched for it: a call that is looked at costs time.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, Passes] = (
            weakref.WeakKeyDictionary()
        )
        self._stock: Callable[..., Any] | None = None
        self._local = threading.local()

    def listen(self) -> tuple[Listener, Callable[[], None]]:
        """A listener, and the function that ends it."""
        listener = Listener()
        with self._lock:
            self._listeners.append(listener)
            if self._stock is None:
                self._stock = _module_class.__call__
                _module_class.__call__ = _replaced_call(self, self._stock)
        return listener, lambda: self._leave(listener)

    def _leave(self, listener: Listener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners and self._stock is not None:
                _module_class.__call__, self._stock = self._stock, None

    def remember(self, module: torch.nn.Module, outside: Counter[str]) -> Passes:
        """Take `outside` as found for `module`, which is not watched any more."""
        limits = length_limits(module)
        passes = Passes(type(module).__name__, NUM_PASSES, outside, limits=limits)
        self._known[module] = passes
        return passes

    def known(self, module: torch.nn.Module) -> Passes:
        """The knowledge of a module, which may be none yet."""
        if module not in self._known:
            matters = (
                has_chunked_state(module)
                or counts_padding(module)
                or convolves_padding(module)
                or (generates(module) and drops_mask(module))
            )
            limits = length_limits(module)
            self._known[module] = Passes(
                type(module).__name__, padding_matters=matters, limits=limits
            )
            FUSED.take_new()
        return self._known[module]

    def call(self, stock: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> Any:
        """Call a module; watch it if it is called from outside any other and is not known yet."""
        if getattr(self._local, "inside", False):
            return stock(module, *args, **kwargs)
        self._local.inside = True
        try:
            written = as_written(module)
            passes = self.known(written)
            for listener in tuple(self._listeners):
                if listener.saw(passes):
                    self._leave(listener)
            if not passes.limits or capturing():  # looking at a pass reads values
                return self._watched(passes, stock, module, args, kwargs)
            problem = pass_too_long(passes.limits, written.forward, args, kwargs)
            result = self._watched(passes, stock, module, args, kwargs)
            for listener in self._listeners if problem is not None else ():
                listener.too_long.setdefault(id(passes), f"{passes.name} {problem}")
            return result
        finally:
            self._local.inside = False

    def _watched(
        self, passes: Passes, stock: Callable[..., Any], module: Any, args: Any, kwargs: Any
    ) -> Any:
        """Call a module, and keep the ops of its first passes."""
        if passes.watched >= NUM_PASSES or capturing():  # watching reads values of some ops
            return stock(module, *args, **kwargs)
        watch = OpWatch(module)
        with watch:
            result = stock(module, *args, **kwargs)
        passes.watched += 1
        passes.outside += watch.outside
        return result


def _replaced_call(passes: FirstPasses, stock: Callable[..., Any]) -> Callable[..., Any]:
    def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return passes.call(stock, module, args, kwargs)

    return call


FIRST_PASSES = FirstPasses()
