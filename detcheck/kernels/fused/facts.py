"""What was found about modules, in a form that is quickly looked at again before each call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Facts:
    """Entries of dictionaries, modules without a forward of their own, and hooks that are none."""

    entries: tuple[tuple[Mapping[Any, Any], Any, Any], ...]
    """Dictionary, key and the value that it has, or has not if it is None."""
    attributes: tuple[Mapping[str, Any], ...]
    """The attributes of each module."""
    hooks: tuple[Mapping[int, Any], ...]

    def hold(self) -> bool:
        """True if nothing of this has changed."""
        for dictionary, key, value in self.entries:
            if dictionary.get(key) is not value:
                return False
        for attributes in self.attributes:
            if "forward" in attributes:
                return False
        return not any(self.hooks)

    def __add__(self, other: Facts) -> Facts:
        """The facts of both."""
        return Facts(
            self.entries + other.entries,
            self.attributes + other.attributes,
            self.hooks + other.hooks,
        )


def facts_of(parent: torch.nn.Module, names: Iterable[str]) -> Facts:
    """The children `names` of a module are these, and they have these weights and biases."""
    children = [(name, parent._modules.get(name)) for name in names]
    modules = [child for _, child in children if child is not None]
    return Facts(
        tuple((parent._modules, name, child) for name, child in children)
        + tuple(
            (child._parameters, name, child._parameters.get(name))
            for child in modules
            for name in ("weight", "bias")
        ),
        tuple(child.__dict__ for child in modules),
        tuple(getattr(child, kind) for child in modules for kind in _HOOKS),
    )
