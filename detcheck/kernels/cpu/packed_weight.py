"""Weights in oneDNN's packed layout: the copies themselves, and the classes of their products."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from detcheck.kernels.cpu.numerics import full_precision, numerics
from detcheck.kernels.cpu.rows import ANCHOR_ROWS, ClassTable, ProductShape, RowClasses

EXPECTED_ROWS = 16
"""The number of rows that oneDNN chooses a layout for."""
FEWEST_COLUMNS = 16
"""Narrower weights are not packed side by side: too few results would be compared."""
CHECKSUM_WORDS = 1021
"""Words of a checksum: a prime, so that rows which change places are added to other words."""

_reorder = torch.ops.mkldnn._reorder_linear_weight.default._op
_linear = torch.ops.mkldnn._linear_pointwise.default._op


def product(left: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(…, K) by a packed (N, K) weight to (…, N), plus a bias (N,) before rounding."""
    result: torch.Tensor = _linear(left, packed, bias, "none", [], "")
    return result


class Aliases:
    """Tensors got from a parameter's `.data`, or put there.

    They share its memory, but not its version counter.
    """

    def __init__(self) -> None:
        self.given = 0
        """Their number, freed ones included."""
        self._living: list[weakref.ref[torch.Tensor]] = []

    def add(self, alias: torch.Tensor) -> None:
        """Take note of a new one."""
        self.given += 1
        self._living.append(weakref.ref(alias))

    def any_living(self) -> bool:
        """True if one of them may still change the parameter."""
        self._living = [alias for alias in self._living if alias() is not None]
        return bool(self._living)


@dataclass(slots=True)
class Source:
    """The state that a parameter had when it was packed."""

    version: int
    address: int
    checksum: bytes
    aliases: Aliases
    harmless: int
    """The number of aliases up to now that cannot have changed the values, and do not live; or -1.

    A later check is needed only if there are more.
    """

    @classmethod
    def of(cls, weight: torch.Tensor, aliases: Aliases) -> Source:
        """The state of `weight` now."""
        harmless = -1 if aliases.any_living() else aliases.given
        return cls(weight._version, weight.data_ptr(), checksum(weight), aliases, harmless)

    def is_unchanged(self, weight: torch.Tensor) -> bool:
        """False if the weight has changed, as far as PyTorch records it."""
        return (
            self.version == weight._version
            and self.address == weight.data_ptr()
            and (self.aliases.given == self.harmless or not self._changed_by_alias(weight))
        )

    def changed_unseen(self, weight: torch.Tensor) -> bool:
        """True if the weight counts as unchanged, but its values are not those that were packed."""
        counts = (self.version, self.address) == (weight._version, weight.data_ptr())
        return counts and checksum(weight) != self.checksum

    def _changed_by_alias(self, weight: torch.Tensor) -> bool:
        # An alias that was freed can have written before, but cannot any more.
        given, living = self.aliases.given, self.aliases.any_living()
        changed = checksum(weight) != self.checksum
        if not changed and not living:
            self.harmless = given
        return changed


@dataclass(slots=True)
class PackedWeight:
    """The packed copy of one parameter, or of several side by side as one."""

    packed: torch.Tensor
    inner: int
    """K."""
    widths: tuple[int, ...]
    """N of each parameter."""
    columns: int
    """N of all parameters."""
    settings: tuple[object, ...]
    classes: tuple[RowClasses, RowClasses]
    """Row classes of the product without and with a bias."""
    sources: tuple[Source, ...]
    """One for each parameter."""

    def is_current(self, *weights: torch.Tensor) -> bool:
        """False if one of the weights, or a setting that changes numerics, has changed."""
        return self.is_unchanged(*weights) and self.settings == numerics()

    def is_unchanged(self, *weights: torch.Tensor) -> bool:
        """False if one of the weights has changed."""
        for source, weight in zip(self.sources, weights, strict=True):
            if not source.is_unchanged(weight):
                return False
        return True


def pack(weights: Sequence[torch.Tensor], sources: tuple[Source, ...]) -> PackedWeight:
    """Pack parameters (N, K) of one K side by side."""
    inner = weights[0].shape[1]
    widths = tuple(len(weight) for weight in weights)
    columns = sum(widths)
    with torch.no_grad():
        whole = weights[0].detach() if len(weights) == 1 else torch.cat([*weights])
        packed = _reorder(whole, EXPECTED_ROWS)
    settings, dtype = numerics(), weights[0].dtype
    plain, biased = (_classes(inner, columns, dtype, each, settings) for each in (False, True))
    return PackedWeight(packed, inner, widths, columns, settings, (plain, biased), sources)


def can_be_side_by_side(weights: Sequence[torch.Tensor]) -> bool:
    """True if products by these weights as one have the bits of products by each, in any row.

    Found by experiment, once per shape, dtype and settings.
    """
    dtype, inner = weights[0].dtype, weights[0].shape[1]
    if any(weight.dtype != dtype or weight.shape[1] != inner for weight in weights):
        return False
    return _side_by_side(inner, tuple(len(weight) for weight in weights), dtype, numerics())


@cache
def _side_by_side(
    inner: int, widths: tuple[int, ...], dtype: torch.dtype, settings: tuple[object, ...]
) -> bool:
    """Anchor calls give the same results; all other calls give those of anchor calls."""
    if min(widths) < FEWEST_COLUMNS:
        return False
    parts = [_classes(inner, columns, dtype, False, settings) for columns in widths]
    whole = _classes(inner, sum(widths), dtype, False, settings)
    with_bias = [
        _classes(inner, columns, dtype, True, settings) for columns in (sum(widths), *widths)
    ]
    if not all(each.rows_are_free for each in (whole, *parts, *with_bias)):
        return False
    weights = [part.probe_weight() for part in parts]
    biases = [_bias(part.shape) for part in parts]
    packed = [_reorder(weight, EXPECTED_ROWS) for weight in weights]
    together = _reorder(torch.cat(weights), EXPECTED_ROWS)
    calls = -(-whole.num_compared // (min(widths) * ANCHOR_ROWS))
    return all(
        torch.equal(
            product(left, together, torch.cat(biases) if biased else None),
            torch.cat(
                [
                    product(left, own, bias if biased else None)
                    for own, bias in zip(packed, biases, strict=True)
                ],
                dim=-1,
            ),
        )
        for left in whole.probe_left(calls * ANCHOR_ROWS).split(ANCHOR_ROWS)
        for biased in (False, True)
    )


def _classes(
    inner: int, columns: int, dtype: torch.dtype, biased: bool, settings: tuple[object, ...]
) -> RowClasses:
    return CLASSES.find(ProductShape(inner, columns, dtype, True, biased), settings)


def _bias(shape: ProductShape) -> torch.Tensor:
    return torch.linspace(-1, 1, shape.columns).to(shape.dtype)


def _make_classes(shape: ProductShape) -> RowClasses:
    bias = _bias(shape) if shape.biased else None
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
        and weight.layout == torch.strided
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


def checksum(weight: torch.Tensor) -> bytes:
    """Sums of every 1021st word of a contiguous (N, K) tensor.

    They differ if one value changed. They differ if rows changed places as well, unless K is a
    multiple of 4 * 1021 or each row moved by a multiple of 1021 rows.
    """
    bits = weight.detach().view(torch.int16).numpy().reshape(-1)
    whole = len(bits) - len(bits) % (4 * CHECKSUM_WORDS)
    words = bits[:whole].view(np.uint64).reshape(-1, CHECKSUM_WORDS)
    sums: np.ndarray = np.add.reduce(words, axis=0, dtype=np.uint64)
    return sums.tobytes() + bits[whole:].tobytes()
