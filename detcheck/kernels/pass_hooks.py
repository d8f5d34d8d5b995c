"""Looks at the arguments of each forward pass of a model, before it is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

Look = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], None]
"""Called with the forward function and its arguments; may raise."""


def look_at_passes(model: torch.nn.Module, look: Look) -> Callable[[], None]:
    """Call `look` before each forward pass of `model`; returns the function that ends this.

    So also of its `base_model`, which has no head, if it is called by itself.
    """
    on_exit = ExitStack()
    base: Any = getattr(model, "base_model", model)
    if base is not model:  # called by itself, such as for hidden states
        on_exit.callback(_watched(base, model, look))
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: look(model.forward, args, kwargs), prepend=True, with_kwargs=True
    )
    on_exit.callback(hook.remove)
    return on_exit.close


def _watched(base: torch.nn.Module, model: torch.nn.Module, look: Look) -> Callable[[], None]:
    """Look at the passes of `base` that `model` did not start; returns the end of this."""
    inside = threading.local()

    def enter(*_: Any) -> None:
        inside.depth = getattr(inside, "depth", 0) + 1

    def leave(*_: Any) -> None:
        inside.depth = max(0, getattr(inside, "depth", 0) - 1)  # `enter` may not have been reached

    def check(_: Any, args: Any, kwargs: Any) -> None:
        if not getattr(inside, "depth", 0):
            look(base.forward, args, kwargs)

    on_exit = ExitStack()
    for hook in (
        model.register_forward_pre_hook(enter, prepend=True),
        model.register_forward_hook(leave, always_call=True),
        base.register_forward_pre_hook(check, prepend=True, with_kwargs=True),
    ):
        on_exit.callback(hook.remove)
    return on_exit.close
