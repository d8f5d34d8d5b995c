"""Linear layers' weights in oneDNN's packed layout: one bitwise class for almost every M, and fast.

oneDNN reorders a weight on each call of a stock linear layer, or reads it in an unsuitable order.
Packed once (`mkldnn::_reorder_linear_weight`), products of bfloat16 and float32 are faster than
stock. Their rows have the same bits for almost every M tried: see `rows.py` for how that is found.

The packed copy takes as much memory as the weight. It is made when a weight is first used, if a
mode allows it and memory suffices, and is freed when the last mode ends. Only `nn.Parameter`s are
packed: other tensors given to `F.linear` may be new on every call.

Weights of one module with the same input may be packed side by side, in one copy instead of one
each (`fused/`), if their products have the same bits so.

A copy must not outlive the values it was made from. It is made again if the parameter's version
counter or address changed, after a step of any `torch.optim.Optimizer` (fused steps do not count
versions), and after a change through `parameter.data`, watched while a mode is on. `verify` finds
other changes by checksums: the mode's proof reports them.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from detcheck.kernels.cpu import matmul
from detcheck.kernels.cpu.memory import available_bytes
from detcheck.kernels.cpu.numerics import in_transform
from detcheck.kernels.cpu.packed_changes import reserve_first_model, watch_changes
from detcheck.kernels.cpu.packed_weight import (
    CLASSES,
    Aliases,
    PackedWeight,
    Source,
    can_be_packed,
    can_be_side_by_side,
    pack,
)

MEMORY_SHARE = 2
"""Packed copies may take at most 1 / this of the memory that is free without them at the start."""

ROOM_MADE = 4
"""Weights are not packed side by side any more once they were needed by themselves, with too little
memory for both, so many times."""


class PackedWeights:
    """The packed weights of this process, shared by all modes that are on.

    Modes and keepers hold it. Weights are packed while at least one mode holds it and none of
    them forbids it; copies are freed when neither modes nor keepers hold it.
    """

    def __init__(self) -> None:
        self.copies: dict[int, PackedWeight] = {}
        """By `id` of the parameter; an entry is removed when its parameter is freed."""
        self.side_by_side: dict[tuple[int, ...], PackedWeight] = {}
        """Copies of several parameters as one, by their ids."""
        self.aliases: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Of each parameter whose `.data` was read, the tensors that this gave."""
        self.free_users: Callable[[], None] = lambda: None
        """Called when copies make room: whoever keeps some lets them go."""
        self._known: dict[int, weakref.ref[torch.Tensor]] = {}
        self._refused: set[int] = set()
        self._apart: Counter[tuple[int, ...]] = Counter()
        """How often a copy of several had to make room for one of each: see `ROOM_MADE`."""
        self._modes = self._forbidding = self._keepers = self._budget = 0
        self._mixed = False
        """True once modes with and without packing were on together, until no mode is on."""
        self._lock = threading.RLock()
        self._remove_hooks: tuple[Callable[[], None], ...] = ()

    def hold(self, allowed: bool) -> Callable[[], None]:
        """Count a mode that is on; returns what counts it off again."""
        with self._lock:
            if not self._modes:
                free = available_bytes() + self.num_bytes
                self._budget = free // MEMORY_SHARE - self.num_bytes
            self._modes += 1
            self._forbidding += not allowed
            self._mixed |= 0 < self._forbidding < self._modes
            self._settle()
            for weight in self._changed():
                self.forget(id(weight))

        def release() -> None:
            with self._lock:
                self._modes -= 1
                self._forbidding -= not allowed
                self._settle()

        return release

    def keep(self) -> Callable[[], None]:
        """Keep copies from one mode to the next, until the function that is returned is called."""
        with self._lock:
            self._keepers += 1

        def release() -> None:
            with self._lock:
                self._keepers -= 1
                self._settle()

        return release

    @property
    def num_bytes(self) -> int:
        """Memory that the copies take now."""
        return sum(copy.packed.nbytes for copy in self._all())

    def _all(self) -> tuple[PackedWeight, ...]:
        return (*self.copies.values(), *self.side_by_side.values())

    @property
    def state(self) -> str:
        """`on`; `off` if a mode forbids packing; or a sentence that says why memory was short."""
        if not self._modes or self._forbidding:
            return "off"
        if self._refused:
            return f"off for {len(self._refused)} weights: packed copies would not fit into memory"
        return "on"

    def find(self, weight: torch.Tensor) -> PackedWeight | None:
        """The current copy of `weight`; packs it if need be. None if it is not to be packed."""
        copy = self.copies.get(id(weight))
        if copy is not None and copy.is_current(weight):
            return copy
        if not self._modes or self._forbidding or in_transform() or not can_be_packed(weight):
            return None
        with self._lock, _disable_current_modes(), torch._C.DisableTorchFunction():
            self.reserve((weight,))
            if id(weight) in self._refused:
                return None
            self._make_room_beside(weight)
            self.copies.pop(id(weight), None)
            copy = self.copies[id(weight)] = pack((weight,), (self._source(weight),))
            return copy

    def find_side_by_side(self, weights: tuple[torch.Tensor, ...]) -> PackedWeight | None:
        """The current copy of parameters (N, K) of one K as one; packs it if need be.

        None if they are not to be packed so. It replaces the copies of each.
        """
        key = tuple(map(id, weights))
        copy = self.side_by_side.get(key)
        if copy is not None and copy.is_current(*weights):
            return copy
        if not self._modes or self._forbidding or in_transform() or self._apart[key] >= ROOM_MADE:
            return None
        if not all(map(can_be_packed, weights)):
            return None
        with self._lock, _disable_current_modes(), torch._C.DisableTorchFunction():
            self.reserve(weights)
            self.side_by_side.pop(key, None)
            if not can_be_side_by_side(weights):
                self._apart[key] = ROOM_MADE
            if self._refused.intersection(key) or self._apart[key] >= ROOM_MADE:
                return None
            for each in key:
                self.copies.pop(each, None)
            copy = pack(weights, tuple(map(self._source, weights)))
            self.side_by_side[key] = copy
            return copy

    def _make_room_beside(self, weight: torch.Tensor) -> None:
        """If memory is short for a copy beside that of several as one, drop the latter."""
        groups = [keys for keys in tuple(self.side_by_side) if id(weight) in keys]
        if not groups or weight.nbytes + self._bytes_beside() <= self._budget:
            return
        for keys in groups:
            self.side_by_side.pop(keys, None)
            self._apart[keys] += 1
        self.free_users()

    def _bytes_beside(self) -> int:
        """Memory of the copies of parameters that are packed side by side as well."""
        together = {key for keys in tuple(self.side_by_side) for key in keys}
        alone = tuple(self.copies.items())
        return sum(copy.packed.nbytes for key, copy in alone if key in together)

    def _source(self, weight: torch.Tensor) -> Source:
        return Source.of(weight, self.aliases.setdefault(weight, Aliases()))

    def reserve(self, weights: Iterable[torch.Tensor]) -> None:
        """Decide whether these weights are packed: all that are new here, or none of them.

        So a model's weights are all packed or all not, and each weight keeps its path.
        """
        with self._lock:
            new = {
                id(weight): weight
                for weight in weights
                if id(weight) not in self._known and can_be_packed(weight)
            }
            needed = sum(weight.nbytes for weight in new.values())
            for key, weight in new.items():
                self._known[key] = weakref.ref(weight, partial(self._freed, key))
            if needed > self._budget:
                self._refused.update(new)
            else:
                self._budget -= needed

    def verify(self) -> str | None:
        """None, or a sentence if products may come from other values, or have other bits."""
        if self._mixed:
            return (
                "modes with and without packed weights were on at once, and their products have "
                "different bits: use one `pack_weights` for all"
            )
        with self._lock:
            changed = self._changed()
        if not changed:
            return None
        shape = tuple(changed[0].shape)
        return (
            f"{len(changed)} packed weights (the first of shape {shape}) were changed in a way "
            "that PyTorch does not record, so results may come from their old values: change them "
            'under `torch.no_grad()`, or use `pack_weights="off"`'
        )

    def _changed(self) -> list[torch.Tensor]:
        """Parameters that count as unchanged, but whose values are not those that were packed."""
        alone = {(key,): copy for key, copy in tuple(self.copies.items())}
        changed = {}
        for keys, copy in (*alone.items(), *tuple(self.side_by_side.items())):
            for key, source in zip(keys, copy.sources, strict=True):
                weight = self._known[key]() if key in self._known else None
                if weight is not None and source.changed_unseen(weight):
                    changed[key] = weight
        return [*changed.values()]

    def _settle(self) -> None:
        """Free the copies, and watch for changes, as the holders want it now."""
        on = self._modes > 0 and self._forbidding == 0
        if on and not self._remove_hooks:
            self._remove_hooks = (watch_changes(self), reserve_first_model(self))
        if not on:
            for remove in self._remove_hooks:
                remove()
            self._remove_hooks = ()
        if not self._modes:
            self._mixed = False
            CLASSES.free_probes()
            matmul.CLASSES.free_probes()
        if self._forbidding or not (self._modes or self._keepers):
            self.copies.clear()
            self.side_by_side.clear()
            self.free_users()
            self._apart.clear()
            self.aliases.clear()
            self._known.clear()
            self._refused.clear()

    def forget(self, key: int) -> None:
        """Drop the copies of the parameter with this `id`, if there are any."""
        self.copies.pop(key, None)
        for keys in tuple(self.side_by_side):  # other threads may change it meanwhile
            if key in keys:
                self.side_by_side.pop(keys, None)

    def _freed(self, key: int, _: weakref.ref[torch.Tensor]) -> None:
        self.forget(key)
        self._known.pop(key, None)
        self._refused.discard(key)
        for keys in tuple(self._apart):
            if key in keys:
                self._apart.pop(keys, None)


STORE = PackedWeights()
