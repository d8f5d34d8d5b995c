"""The functions of transformers' modules that apply rotary positions, replaced while a mode is on.

Only on a machine with kernels for its GPU: elsewhere attention as a whole has a fused form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detcheck.kernels.fused.calls import forms_on_gpu

NAME = "apply_rotary_pos_emb"
_by_own: dict[Any, Any] = {}
"""Our functions, by transformers' functions that they stand for."""
_owns: dict[int, tuple[Any, Any]] = {}
"""By the id of our functions: our function, and transformers'."""


def own_of(function: Any) -> Any:
    """transformers' function if `function` is ours in its place; else `function` itself."""
    ours, own = _owns.get(id(function), (None, None))
    return own if ours is function and ours is not None else function


def replace_rotation(names: dict[str, Any]) -> Callable[[], None] | None:
    """Put our function in the place of the one in `names`, a module's globals.

    Returns what puts transformers' function back; None if nothing was replaced.
    """
    gpu = forms_on_gpu()
    if gpu is None:
        return None
    from detcheck.kernels.fused import templates

    if not templates.rotates(names):
        return None
    own = own_of(names[NAME])
    if own not in _by_own:
        _by_own[own] = gpu.rotation(own)
        _owns[id(_by_own[own])] = _by_own[own], own
    ours = names[NAME] = _by_own[own]

    def restore() -> None:
        if names.get(NAME) is ours:
            names[NAME] = own

    return restore
