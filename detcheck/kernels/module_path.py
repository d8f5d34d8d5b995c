"""Which module of a model is computing now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class ModulePath:
    """The dotted path of the module whose forward runs now, kept up to date by hooks."""

    def __init__(self, model: torch.nn.Module):
        self._model = model
        self._stack: list[str] = [""]

    @property
    def current(self) -> str:
        """Such as `model.layers.0.mlp`; empty within the model's own forward and outside it."""
        return self._stack[-1]

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Keep `current` up to date inside this context; the hooks are removed at its end."""
        hooks: list[Any] = []
        for name, module in self._model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):  # those take no hooks
                hooks.append(module.register_forward_pre_hook(self._entering(name)))
                hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            del self._stack[1:]

    def _entering(self, name: str) -> Any:
        return lambda *_: self._stack.append(name)

    def _leaving(self, *_: Any) -> None:
        self._stack.pop()
