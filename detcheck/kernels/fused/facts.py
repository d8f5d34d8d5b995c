"""What was found about modules, in a form that is quickly looked at again before each call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Facts:
    """Entries of dictionaries, and modules whose calls run the forwards of their classes alone."""

    entries: tuple[tuple[Mapping[Any, Any], Any, Any], ...]
    """Dictionary, key and its value; None if the dictionary does not have the key."""
    modules: tuple[tuple[torch.nn.Module, Mapping[str, Any], type], ...]
    """Modules without hooks and without a forward of their own; their attributes and classes.

    Hooks for gradients do not count: there are none.
    """
    forwards: tuple[tuple[Any, Any], ...]
    """The classes, and their forwards."""

    def hold(self) -> bool:
        """True if nothing of this has changed."""
        for dictionary, key, value in self.entries:
            if dictionary.get(key) is not value:
                return False
        for module, attributes, kind in self.modules:
            if (
                attributes["_forward_hooks"]
                or attributes["_forward_pre_hooks"]
                or "forward" in attributes
                or type(module) is not kind
            ):
                return False
        return all(kind.forward is forward for kind, forward in self.forwards)

    def __add__(self, other: Facts) -> Facts:
        """The facts of both."""
        return Facts(
            self.entries + other.entries,
            self.modules + other.modules,
            (*{*self.forwards, *other.forwards},),
        )


def facts_of(parent: torch.nn.Module, names: Iterable[str]) -> Facts:
    """The children `names` of a module are these, and they have these weights and biases."""
    children = [(name, parent._modules.get(name)) for name in names]
    modules = [child for _, child in children if child is not None]
    kinds: set[Any] = {type(each) for each in modules}
    return Facts(
        tuple((parent._modules, name, child) for name, child in children)
        + tuple(
            (child._parameters, name, child._parameters.get(name))
            for child in modules
            for name in ("weight", "bias")
        ),
        tuple((child, child.__dict__, type(child)) for child in modules),
        tuple((kind, kind.forward) for kind in kinds),
    )
