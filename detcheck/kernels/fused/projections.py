"""The linear layers of a module: those with the same input are one product, the last closes it."""

from __future__ import annotations

import weakref

import torch

from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.cpu.packed_weight import PackedWeight
from detcheck.kernels.fused.facts import facts_of


class Projections:
    """The linear layers of one module, as they were when it was first served."""

    def __init__(self, module: torch.nn.Module, layers: dict[str, torch.nn.Linear], last: str):
        self.facts = facts_of(module, layers)
        together = [layer for name, layer in layers.items() if name != last]
        self.weights: tuple[torch.Tensor, ...] = tuple(layer.weight for layer in together)
        """Of the layers that have the same input."""
        self.key = tuple(map(id, self.weights))
        self.last: torch.nn.Linear = layers[last]
        """The layer that closes the module."""
        self.turns_alike = False
        """True once positions were found to be applied as the module's own function does it."""
        self._biases = tuple(layer.bias for layer in together)
        self._have_biases = any(layer.bias is not None for layer in layers.values())

    @classmethod
    def of(cls, module: torch.nn.Module, names: tuple[str, ...], last: str) -> Projections | None:
        """The layers `names` and `last` of a module; None if one is changed or is not plain."""
        layers = {name: module._modules.get(name) for name in (*names, last)}
        plain = {name: each for name, each in layers.items() if type(each) is torch.nn.Linear}
        biases = {plain[name].bias is None for name in names if name in plain}
        if len(plain) < len(layers) or len(biases) > 1:
            return None
        dtypes = {each.dtype for layer in plain.values() for each in layer.parameters()}
        if len(dtypes) > 1:
            return None
        found = cls(module, plain, last)
        return found if found.facts.hold() else None

    def biases_fit(self, together: PackedWeight, last: PackedWeight) -> bool:
        """True if the biases, if any, have the widths and the dtype of the packed copies."""
        if not self._have_biases:
            return True
        biases = (*self._biases, self.last.bias)
        for bias, width in zip(biases, (*together.widths, *last.widths), strict=True):
            if bias is not None and (
                bias.dtype != last.packed.dtype or bias.shape != (width,) or not bias.is_cpu
            ):
                return False
        return True

    @property
    def bias(self) -> torch.Tensor | None:
        """The biases of the layers with the same input, side by side; None if they have none."""
        biases: list[torch.Tensor] = [bias for bias in self._biases if bias is not None]
        return torch.cat(biases) if biases else None


class ProjectionsOfModules:
    """The layers of every module of one kind that was served."""

    def __init__(self, names: tuple[str, ...], last: str):
        self._names, self._last = names, last
        self._of: weakref.WeakKeyDictionary[torch.nn.Module, Projections] = (
            weakref.WeakKeyDictionary()
        )

    def find(self, module: torch.nn.Module) -> Projections | None:
        """The layers of a module; None if it is not to be served."""
        layers = self._of.get(module)
        if layers is None or not layers.facts.hold():
            self._of.pop(module, None)
            layers = Projections.of(module, self._names, self._last)
            if layers is None:
                return None
            self._of[module] = layers
        return layers


def copies_of(
    layers: Projections, x: torch.Tensor, settings: tuple[object, ...]
) -> tuple[PackedWeight, PackedWeight] | None:
    """The packed copies that a module multiplies `x` (…, K) by: of its layers with the same input
    as one, and of its last one.

    None if they are not to be packed, or do not fit. `settings` is what `numerics` gives now.
    """
    both = STORE.side_by_side.get(layers.key)
    if both is None or both.settings != settings or not both.is_unchanged(*layers.weights):
        both = STORE.find_side_by_side(layers.weights)
    weight = layers.last.weight
    last = STORE.copies.get(id(weight))
    if last is None or last.settings != settings or not last.is_unchanged(weight):
        last = STORE.find(weight)
    if both is None or last is None or not fits(x, both) or last.packed.dtype != x.dtype:
        return None
    return (both, last) if x.numel() and layers.biases_fit(both, last) else None


def fits(x: torch.Tensor, copy: PackedWeight) -> bool:
    """True if a packed weight multiplies `x` (…, K)."""
    inner: int = x.shape[-1]
    return type(x) is torch.Tensor and x.dtype == copy.packed.dtype and inner == copy.inner
