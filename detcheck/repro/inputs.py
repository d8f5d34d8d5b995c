"""The inputs of an op's two calls, as lines of a script: seeded, or loaded from a file."""

from __future__ import annotations

import base64
import lzma
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from detcheck.errors import MeasurementError
from detcheck.probes.calls import CallPair, KeptInput, OpCall, convert, tensors
from detcheck.probes.recorder import digest

LARGEST_ORDINARY = 1e6
"""Larger values stand for something, such as the minus infinity of a mask."""
LEAST_DISTINCT = 64
"""Fewer distinct values stand for something too."""
LONGEST_PACKED = 6000
"""Characters of an input that may stand in the script itself."""

Cut = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class PairedInput:
    """A tensor of the call in the batch, and the tensor in its place in the call alone."""

    name: str
    batch: KeptInput
    alone: KeptInput
    part: str | None
    """Expression of the request's part of the batch's values; None if it is not known."""

    @property
    def can_be_seeded(self) -> bool:
        """True if random values can stand for it: a mask, for one, means what its values say."""
        values = self.batch.values
        if self.part is None or not values.is_floating_point():
            return False
        ordinary = bool(values.isfinite().all()) and float(values.abs().max()) < LARGEST_ORDINARY
        distinct = len(torch.unique(values))
        return ordinary and distinct >= min(LEAST_DISTINCT, values.numel() // 2 + 1)

    def definitions(self, *, seeded: bool) -> list[str]:
        """The lines that make its values, and those of the request alone if these are others."""
        if seeded:
            values = self.batch.values
            scale = float(values.double().std(correction=0)) or 1.0
            shape, dtype = tuple(values.shape), values.dtype
            return [f"{self.name} = seeded(generator, {shape}, {dtype}, scale={scale:.2g})"]
        return [
            f"{name} = {_packed(values) or _loaded(name)}" for name, values in self.kept().items()
        ]

    def kept(self) -> dict[str, torch.Tensor]:
        """Its values by name; those of the request alone too, if these are no part of the rest."""
        kept = {self.name: self.batch.values}
        if self.part is None:
            kept[f"{self.name}_alone"] = self.alone.values
        return kept

    def too_long(self) -> dict[str, torch.Tensor]:
        """Those of `kept` that are too long for a script, and have to be in a file."""
        return {name: values for name, values in self.kept().items() if not _packed(values)}

    @property
    def in_batch(self) -> str:
        """The expression of the tensor in the batch."""
        return _laid_out(self.name, self.batch)

    @property
    def in_call_alone(self) -> str:
        """The expression of the tensor for the request alone."""
        return _laid_out(self.part or f"{self.name}_alone", self.alone)


def _packed(values: torch.Tensor) -> str:
    """Code that holds the bits of `values`; empty if it would be too long for a script."""
    raw = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    text = base64.b85encode(lzma.compress(raw, preset=9)).decode("ascii")
    if len(text) > LONGEST_PACKED:
        return ""
    lines = [text[at : at + 80] for at in range(0, len(text), 80)]
    inside = "\n".join(f"        {line!r}" for line in lines)
    return f"packed(\n{inside},\n        {tuple(values.shape)}, {values.dtype},\n    )"


def _loaded(name: str) -> str:
    return f'saved["{name}"]'


def _laid_out(values: str, kept: KeptInput) -> str:
    return f"laid_out({values}, {kept.stride}, {kept.offset})"


def pair_inputs(pair: CallPair) -> list[PairedInput]:
    """The tensors of both calls, in order.

    Raises MeasurementError if the op is none of PyTorch's own, or the calls do not correspond.
    """
    batch, alone = pair.batch, pair.alone
    if batch.op != alone.op:
        raise MeasurementError(
            "The op that differs was not called the same way alone, so no script can compare both."
        )
    if batch.op.split(".")[0] not in ("aten", "mkldnn"):
        raise MeasurementError(
            f"{batch.op} is no op of PyTorch's own: trace under stock kernels to recreate one."
        )
    both = [list(tensors((call.args, call.kwargs), KeptInput)) for call in (batch, alone)]
    if len(both[0]) != len(both[1]) or _has_opaque(batch) or _has_opaque(alone):
        raise MeasurementError(
            f"The inputs of {batch.op} in the batch and alone do not correspond, so no script can "
            "recreate both calls."
        )
    cut = pair.cut
    return [
        PairedInput(f"x{number}", whole, own, _part(f"x{number}", whole, own, cut))
        for number, (whole, own) in enumerate(zip(*both, strict=True))
    ]


def _has_opaque(call: OpCall) -> bool:
    """True if a tensor could not be kept; a None among several tensors is an absent argument."""
    return not any(tensors((call.args, call.kwargs), KeptInput))


def _part(name: str, whole: KeptInput, own: KeptInput, cut: Cut) -> str | None:
    """The expression of `own`'s values as a part of `whole`'s, if it has the same bits."""
    shape = tuple(own.values.shape)
    if whole.values.dtype != own.values.dtype:
        return None
    if shape == tuple(whole.values.shape):
        return name if digest(whole.values) == digest(own.values) else None
    part = cut(whole.values, shape)
    if part is None or digest(part) != digest(own.values):
        return None
    return f"{name}{index_of(whole.values, shape, cut)}"


def index_of(whole: torch.Tensor, shape: tuple[int, ...], cut: Cut) -> str:
    """The index, as code, of the part of a contiguous tensor that is one request's."""
    part = cut(torch.empty(whole.shape, device="meta"), shape)
    if part is None:
        raise MeasurementError("The request's part of the result in the batch cannot be found.")
    left, slices = int(part.storage_offset()), []
    for size, length, stride in zip(whole.shape, part.shape, _strides(whole), strict=True):
        start, left = divmod(left, stride)
        slices.append(":" if length == size else f"{start}:{start + length}")
    reshaped = "" if tuple(part.shape) == shape else f".reshape({shape})"
    return f"[{', '.join(slices)}]{reshaped}"


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    return torch.empty(x.shape, device="meta").stride()


def arguments(call: OpCall, expressions: Iterator[str]) -> tuple[list[str], list[str]]:
    """Positional and keyword arguments as code; each tensor takes the next of `expressions`."""

    def code(leaf: Any) -> Any:
        return _Code(next(expressions)) if isinstance(leaf, KeptInput) else leaf

    args, kwargs = convert(call.args, code), convert(call.kwargs, code)
    return [_literal(arg) for arg in args], [f"{n!r}: {_literal(v)}" for n, v in kwargs.items()]


@dataclass(frozen=True, slots=True)
class _Code:
    text: str


def _literal(value: Any) -> str:
    """A value as Python code."""
    if isinstance(value, _Code):
        return value.text
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_literal, value))
        comma = "," if len(value) == 1 else ""
        return f"({inside}{comma})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return "torch.device(DEVICE)"
    return repr(value)
