"""One call of an op, kept with its inputs as they lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ALIGNMENT = 64
"""Bytes of a cache line; some kernels treat the entries before the first line boundary apart."""


@dataclass(frozen=True, slots=True)
class KeptInput:
    """A tensor among the inputs of a call."""

    values: torch.Tensor
    """A contiguous copy on the CPU."""
    stride: tuple[int, ...]
    """Strides of the original, in elements."""
    offset: int
    """Elements from the last cache line boundary to the original's first element."""
    is_weight: bool
    """True if it is a parameter of the model."""

    @classmethod
    def of(cls, x: torch.Tensor, weights: Collection[int]) -> KeptInput | None:
        """Copy `x`; None if it has no strides. `weights` are addresses of parameters' storages."""
        if x.layout != torch.strided:
            return None
        return cls(
            x.detach().cpu().contiguous().clone(),
            tuple(x.stride()),
            x.data_ptr() % ALIGNMENT // x.element_size(),
            x.untyped_storage().data_ptr() in weights,
        )


@dataclass(frozen=True, slots=True)
class OpCall:
    """One call; a tensor among its arguments is a `KeptInput`, or None if it has no strides."""

    op: str
    """Name within `torch.ops`, such as `aten.linear.default`."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    device: str
    """Device of its first tensor, such as `cpu`."""

    @classmethod
    def of(
        cls, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weights: Collection[int]
    ) -> OpCall:
        """Keep a call of the aten op `op`."""
        device = next((x.device.type for x in tensors((args, kwargs), torch.Tensor)), "cpu")

        def keep(x: Any) -> Any:
            return KeptInput.of(x, weights) if isinstance(x, torch.Tensor) else x

        return cls(str(op), convert(tuple(args), keep), convert(dict(kwargs), keep), device)


@dataclass(frozen=True, slots=True)
class CallPair:
    """The differing op's call for the request alone and its call in the batch."""

    alone: OpCall
    batch: OpCall
    cut: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor | None]
    """Cuts the request's part out of a tensor of the batch, given its shape alone."""
    output: torch.Tensor
    """The op's result for the request alone, on the CPU."""
    batch_output: torch.Tensor
    """The op's result in the batch, on the CPU."""


def convert(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with every leaf of its tuples, lists and dictionaries replaced by `change(leaf)`."""
    if isinstance(value, Mapping):
        return {name: convert(each, change) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(convert(each, change) for each in value)
    return change(value)


def tensors(value: Any, kind: type) -> Iterator[Any]:
    """Every leaf of that kind within tuples, lists and dictionaries, in order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each, kind)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors(each, kind)
