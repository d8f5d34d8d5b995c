"""What was found about modules, in a form that is quickly looked at again before each call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter, is_
from typing import Any

import torch

Entry = tuple[Mapping[Any, Any], Any, Any]
"""Dictionary, key and its value; None if the dictionary does not have the key."""

_get: Any = dict.get
_forward_of = attrgetter("forward")
_OF_CALLS = ("_forward_hooks", "_forward_pre_hooks", "forward")
"""Attributes of a module by which its call runs more or other code than its class's forward.

Hooks for gradients do not count: there are none.
"""


class Facts:
    """Entries of dictionaries, and modules whose calls run the forwards of their classes alone.

    They are kept in columns, which Python compares without a loop of its own.
    """

    def __init__(self, entries: Iterable[Entry], modules: Iterable[torch.nn.Module] = ()):
        self.entries, self.modules = tuple(entries), tuple(modules)
        self._dictionaries = [dictionary for dictionary, _, _ in self.entries]
        self._keys = [key for _, key, _ in self.entries]
        self._values = [value for _, _, value in self.entries]
        self._attributes = [vars(each) for each in self.modules for _ in _OF_CALLS]
        self._names = _OF_CALLS * len(self.modules)
        self._classes: list[Any] = [type(each) for each in self.modules]
        self._different = list(dict.fromkeys(self._classes))
        self._forwards = [each.forward for each in self._different]

    def hold(self) -> bool:
        """True if nothing of this has changed."""
        return (
            all(map(is_, map(_get, self._dictionaries, self._keys), self._values))
            and not any(map(_get, self._attributes, self._names))
            and all(map(is_, map(type, self.modules), self._classes))
            and all(map(is_, map(_forward_of, self._different), self._forwards))
        )

    def __add__(self, other: Facts) -> Facts:
        """The facts of both."""
        return Facts(self.entries + other.entries, self.modules + other.modules)


def facts_of(parent: torch.nn.Module, names: Iterable[str]) -> Facts:
    """The children `names` of a module are these, and they have these weights and biases."""
    children = [(name, parent._modules.get(name)) for name in names]
    modules = [child for _, child in children if child is not None]
    parameters = [
        (child._parameters, name, child._parameters.get(name))
        for child in modules
        for name in ("weight", "bias")
    ]
    return Facts([*((parent._modules, *child) for child in children), *parameters], modules)
