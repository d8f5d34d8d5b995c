"""Linear layers' weights in oneDNN's packed layout: one bitwise class for almost every M, and fast.

oneDNN reorders a weight on each call of a stock linear layer, or reads it in an unsuitable order.
Packed once (`mkldnn::_reorder_linear_weight`), products of bfloat16 and float32 are faster than
stock. Their rows have the same bits for almost every M tried: see `rows.py` for how that is found.

The packed copy takes as much memory as the weight. It is made when a weight is first used, if a
mode allows it and memory suffices, and is freed when the last mode ends. Only `nn.Parameter`s are
packed: other tensors given to `F.linear` may be new on every call.

A copy must not outlive the values it was made from. It is made again if the parameter's version
counter or address changed, after a step of any `torch.optim.Optimizer` (fused steps do not count
versions), and after a change through `parameter.data`, watched while a mode is on. `verify` finds
other changes by checksums: the mode's proof reports them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from detcheck.kernels.cpu import matmul
from detcheck.kernels.cpu.memory import available_bytes
from detcheck.kernels.cpu.numerics import full_precision, in_transform, numerics
from detcheck.kernels.cpu.packed_changes import reserve_first_model, watch_changes
from detcheck.kernels.cpu.rows import ClassTable, ProductShape, RowClasses

EXPECTED_ROWS = 16
"""The number of rows that oneDNN chooses a layout for."""
MEMORY_SHARE = 2
"""Packed copies may take at most 1 / this of the memory that is free without them at the start."""

_reorder = torch.ops.mkldnn._reorder_linear_weight.default._op
_linear = torch.ops.mkldnn._linear_pointwise.default._op


def product(left: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(…, K) by a packed (N, K) weight to (…, N), plus a bias (N,) before rounding."""
    result: torch.Tensor = _linear(left, packed, bias, "none", [], "")
    return result


@dataclass(slots=True)
class PackedWeight:
    """The packed copy of one parameter, and the state of the parameter when it was made."""

    packed: torch.Tensor
    inner: int
    """K."""
    version: int
    address: int
    settings: tuple[object, ...]
    checksum: np.ndarray
    classes: tuple[RowClasses, RowClasses]
    """Row classes of the product without and with a bias."""
    aliases: list[weakref.ref[torch.Tensor]]
    """Tensors from `.data`: they share the parameter's memory, but not its version counter."""

    def is_current(self, weight: torch.Tensor) -> bool:
        """False if the weight, or a setting that changes numerics, has changed."""
        return (
            self.version == weight._version
            and self.address == weight.data_ptr()
            and self.settings == numerics()
            and not (self.aliases and self._changed_by_alias(weight))
        )

    def _changed_by_alias(self, weight: torch.Tensor) -> bool:
        # An alias that was freed can have written before, but cannot any more.
        self.aliases[:] = [alias for alias in self.aliases if alias() is not None]
        return not np.array_equal(checksum(weight), self.checksum)


class PackedWeights:
    """The packed weights of this process, shared by all modes that are on.

    Modes and keepers hold it. Weights are packed while at least one mode holds it and none of
    them forbids it; copies are freed when neither modes nor keepers hold it.
    """

    def __init__(self) -> None:
        self.copies: dict[int, PackedWeight] = {}
        """By `id` of the parameter; an entry is removed when its parameter is freed."""
        self.aliases: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Of each parameter whose `.data` was read, the tensors that this gave."""
        self._known: dict[int, weakref.ref[torch.Tensor]] = {}
        self._refused: set[int] = set()
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
        return sum(copy.packed.nbytes for copy in self.copies.values())

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
            self.copies.pop(id(weight), None)
            copy = self.copies[id(weight)] = _pack(weight, self.aliases.setdefault(weight, []))
            return copy

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
        found = []
        for key, copy in tuple(self.copies.items()):
            reference = self._known.get(key)
            weight = reference() if reference is not None else None
            if (
                weight is not None
                and (copy.version, copy.address) == (weight._version, weight.data_ptr())
                and not np.array_equal(checksum(weight), copy.checksum)
            ):
                found.append(weight)
        return found

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
            self.aliases.clear()
            self._known.clear()
            self._refused.clear()

    def forget(self, key: int) -> None:
        """Drop the copy of the parameter with this `id`, if there is one."""
        self.copies.pop(key, None)

    def _freed(self, key: int, _: weakref.ref[torch.Tensor]) -> None:
        self.forget(key)
        self._known.pop(key, None)
        self._refused.discard(key)


def _pack(weight: torch.Tensor, aliases: list[weakref.ref[torch.Tensor]]) -> PackedWeight:
    columns, inner = weight.shape
    with torch.no_grad():
        packed = _reorder(weight.detach(), EXPECTED_ROWS)
    settings = numerics()
    classes = tuple(
        CLASSES.find(ProductShape(inner, columns, weight.dtype, True, biased), settings)
        for biased in (False, True)
    )
    return PackedWeight(
        packed=packed,
        inner=inner,
        version=weight._version,
        address=weight.data_ptr(),
        settings=settings,
        checksum=checksum(weight),
        classes=(classes[0], classes[1]),
        aliases=aliases,
    )


def _make_classes(shape: ProductShape) -> RowClasses:
    bias = torch.linspace(-1, 1, shape.columns).to(shape.dtype) if shape.biased else None
    return RowClasses(
        shape,
        lambda left, packed: product(left, packed, bias),
        lambda right: _reorder(right.t(), EXPECTED_ROWS),
    )


CLASSES = ClassTable(_make_classes)


def can_be_packed(weight: torch.Tensor) -> bool:
    """True for a parameter (N, K) on the CPU, in a dtype that oneDNN packs on this machine.

    False for a parameter made in inference mode, since it has no version counter; and for float32
    if its products may be computed in a lower precision, which packed products ignore.
    """
    return (
        type(weight) is torch.nn.Parameter
        and weight.dtype in _dtypes()
        and weight.dim() == 2
        and weight.is_cpu
        and weight.is_contiguous()
        and weight.numel() > 0
        and not weight.is_inference()
        and (weight.dtype != torch.float32 or full_precision())
    )


@cache
def _dtypes() -> frozenset[torch.dtype]:
    """Dtypes that oneDNN packs on this machine; float16 needs a CPU with its instructions."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    supported = {
        torch.float32: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, works in supported.items() if works)


def checksum(weight: torch.Tensor) -> np.ndarray:
    """Sums of the bits of a contiguous (N, K) tensor over N: they differ if one value changed."""
    bits = weight.detach().view(torch.int16).numpy()
    words = bits.view(np.uint64) if bits.shape[1] % 4 == 0 else bits.view(np.uint16)
    sums: np.ndarray = np.add.reduce(words, axis=0, dtype=np.uint64)
    return sums


STORE = PackedWeights()
