"""Puts the fused forms in place of the forwards of transformers' classes, while a mode is on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch.nn import functional as F

from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.fused.attention import Form, FusedAttention
from detcheck.kernels.fused.calls import LINEAR, Calls
from detcheck.kernels.fused.layer import FusedLayer
from detcheck.kernels.fused.mlp import FusedMlp
from detcheck.kernels.fused.norm import FusedNorm
from detcheck.kernels.fused.rotations import replace_rotation
from detcheck.kernels.fused.steps import forget_steps

_PREFIX = "transformers.models."
Make = Callable[[Any, Calls], Any]
"""Makes the fused form of a class from its own forward; its calls are counted."""


class FusedClasses:
    """The classes whose forwards are replaced while at least one mode holds this."""

    def __init__(self) -> None:
        self._holders = 0
        self._calls: Calls = {}
        self._forms: dict[Any, Any] = {}
        """The fused forms of the classes that are replaced now."""
        self._restore = ExitStack()
        self._fusable: dict[str, tuple[Any, ...]] = {}
        """By module of transformers, the classes in it that had a fused form at first."""
        self._with_rotation: set[str] = set()
        """The modules of transformers whose rotary positions are replaced now."""
        self._lock = threading.RLock()

    def hold(self, calls: Calls) -> Callable[[], None]:
        """Replace the forwards of all classes that are imported; returns what releases them.

        The mode has put its function in the place of `F.linear` already.
        """
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._calls, LINEAR.function = calls, F.linear
                STORE.free_users = self._forget_copies
            try:
                self.take_new()
            except BaseException:
                self._release()
                raise
        return self._release

    def take_new(self) -> None:
        """Replace the forwards of classes that were imported meanwhile, if a mode holds this."""
        with self._lock:
            if not self._holders:
                return
            for name, module in tuple(sys.modules.items()):
                if name.startswith(_PREFIX) and ".modeling_" in name:
                    self._replace(name, module)

    def _replace(self, name: str, module: ModuleType) -> None:
        self._replace_classes(name, module)
        if name not in self._with_rotation:
            restore = replace_rotation(vars(module))
            if restore is not None:
                self._with_rotation.add(name)
                self._restore.callback(restore)

    def _replace_classes(self, name: str, module: ModuleType) -> None:
        if name not in self._fusable:
            kinds = (each for each in tuple(vars(module).values()) if isinstance(each, type))
            self._fusable[name] = tuple(kind for kind in kinds if self._form_of(_place(kind)[0]))
        for kind in self._fusable[name]:
            if kind in self._forms:
                continue
            own, swap = _place(kind)
            make = self._form_of(own)  # None if somebody replaced its forward meanwhile
            if make is not None:
                form = make(own, self._calls)
                form.in_place = wraps(own)(form.forward())
                swap(own, form.in_place)
                self._restore.callback(swap, form.in_place, own)
                self._forms[kind] = form

    def _release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                LINEAR.function = None
                self._restore.close()
                self._forms.clear()
                self._with_rotation.clear()
                forget_steps()

    def _forget_copies(self) -> None:
        for form in tuple(self._forms.values()):
            if isinstance(form, FusedLayer):
                form.forget()

    def _form_of(self, own: Any) -> Make | None:
        """Makes the fused form of a class with this forward; None if it has none."""
        if not isinstance(own, FunctionType):
            return None
        from detcheck.kernels.fused import templates

        if templates.same_code(own, templates.rms_norm):
            return FusedNorm
        if templates.same_code(own, templates.gated_mlp):
            return FusedMlp
        if templates.same_code(own, templates.decoder_layer):
            return partial(FusedLayer, forms=self._forms)
        forms = {
            templates.attention: Form(),
            templates.attention_with_window: Form(window="module"),
            templates.attention_with_window_of_config: Form(window="config"),
            templates.attention_with_norms: Form(window="module", norms=True),
        }
        for template, form in forms.items():
            if templates.same_code(own, template) and templates.rotates(own.__globals__):
                return partial(FusedAttention, form=form)
        return None


def _place(kind: Any) -> tuple[Any, Callable[[Any, Any], None]]:
    """The forward that a class defines itself, or None; and a function that swaps it.

    The function takes the old and the new forward, and does nothing if another one is there.

    transformers wraps the forwards of layers, for gradient checkpointing, and asks whether its
    wrapper is still there. So the function inside is taken.
    """
    outer = vars(kind).get("forward")
    inner = getattr(outer, "__wrapped__", None)
    for cell in getattr(outer, "__closure__", None) or ():
        if inner is not None and cell.cell_contents is inner:
            return inner, partial(_swap_in_cell, cell)
    return outer, partial(_swap_in_class, kind)


def _swap_in_cell(cell: CellType, old: Any, new: Any) -> None:
    if cell.cell_contents is old:
        cell.cell_contents = new


def _swap_in_class(kind: Any, old: Any, new: Any) -> None:
    if vars(kind).get("forward") is old:
        kind.forward = new


FUSED = FusedClasses()
