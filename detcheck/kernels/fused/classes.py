"""Puts the fused forms in place of the forwards of transformers' classes, while a mode is on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial, wraps
from types import ModuleType
from typing import Any

import torch

from detcheck.kernels.fused.attention import Form, FusedAttention
from detcheck.kernels.fused.layer import FusedLayer
from detcheck.kernels.fused.mlp import FusedMlp
from detcheck.kernels.fused.norm import FusedNorm
from detcheck.kernels.fused.steps import forget_step
from detcheck.kernels.fused.unit import Calls

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
        self._fusable: dict[str, tuple[tuple[Any, Make], ...]] = {}
        """By module of transformers, the classes in it that have a fused form."""
        self._lock = threading.RLock()

    def hold(self, calls: Calls) -> Callable[[], None]:
        """Replace the forwards of all classes that are imported; returns what releases them."""
        with self._lock:
            self._holders += 1
            self._calls = calls
            self.take_new()
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
        if name not in self._fusable:
            self._fusable[name] = tuple(self._fusable_in(module))
        for kind, make in self._fusable[name]:
            if kind not in self._forms:
                own, put = _place(kind)
                form = self._forms[kind] = make(own, self._calls)
                put(wraps(own)(form.forward()))
                self._restore.callback(put, own)

    def _release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._restore.close()
                self._forms.clear()
                forget_step()

    def _fusable_in(self, module: ModuleType) -> Iterator[tuple[Any, Make]]:
        """The classes of a module of transformers that have a fused form."""
        from detcheck.kernels.fused import templates

        forms = {
            templates.attention: Form(),
            templates.attention_with_window: Form(window="module"),
            templates.attention_with_window_of_config: Form(window="config"),
            templates.attention_with_norms: Form(window="module", norms=True),
        }
        rotates = templates.rotates(module)
        for kind in tuple(vars(module).values()):
            if not isinstance(kind, type) or not issubclass(kind, torch.nn.Module):
                continue
            own, _ = _place(kind)
            if templates.same_code(own, templates.rms_norm):
                yield kind, FusedNorm
            elif templates.same_code(own, templates.gated_mlp):
                yield kind, FusedMlp
            elif templates.same_code(own, templates.decoder_layer):
                yield kind, partial(FusedLayer, forms=self._forms)
            elif rotates:
                for template, form in forms.items():
                    if templates.same_code(own, template):
                        yield kind, partial(FusedAttention, form=form)


def _place(kind: Any) -> tuple[Any, Callable[[Any], None]]:
    """The forward that a class defines itself, or None, and how another is put in its place.

    transformers wraps the forwards of layers, for gradient checkpointing, and asks whether its
    wrapper is still there. So the function inside is taken.
    """
    outer = vars(kind).get("forward")
    inner = getattr(outer, "__wrapped__", None)
    for cell in getattr(outer, "__closure__", None) or ():
        if inner is not None and cell.cell_contents is inner:
            return inner, partial(setattr, cell, "cell_contents")
    return outer, partial(setattr, kind, "forward")


FUSED = FusedClasses()
