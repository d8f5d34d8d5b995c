"""Batch-invariant activations on the CPU: every element goes through the vector kernel.

PyTorch computes most of a tensor by vector instructions. The rest, less than a vector at the end
of each thread's part, goes through the scalar library, and for silu, gelu and others the two round
differently. Which elements are the rest depends on the size of the batch. If each thread's part is
a whole number of vectors (all usual widths), a tensor runs as it is; else it is padded. Gradients
of these activations are computed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

VECTOR_ELEMENTS = 64
"""A multiple of what any vector loop takes at a time: two AVX-512 registers of half precision."""
SPLIT_ELEMENTS = 16384
"""Below this many elements no activation is split over threads."""
GRAIN_ELEMENTS = 32768
"""Elements for which PyTorch starts another thread (at::internal::GRAIN_SIZE)."""

Kernel = Callable[..., Any]


def in_whole_vectors(op: str, dtypes: frozenset[torch.dtype] | None = None) -> Kernel:
    """The activation `op` (x, …) of a tensor of any shape: an element's place does not matter.

    `dtypes` are those whose stock kernel is not invariant; None: all floats.
    """
    stock = stock_kernel(op)

    def activate(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if (dtypes is not None and x.dtype not in dtypes) or _whole(x):
            return stock(x, *args, **kwargs)
        return as_whole_vectors(lambda padded: stock(padded, *args, **kwargs), x)

    return activate


def as_whole_vectors(function: Kernel, *operands: torch.Tensor) -> torch.Tensor:
    """`function` of tensors of one shape, padded to whole vectors."""
    shape, size = operands[0].shape, operands[0].numel()
    padded = [x.new_zeros(_padded_size(size)) for x in operands]
    for wide, x in zip(padded, operands, strict=True):
        wide[:size] = x.reshape(-1)
    result: torch.Tensor = function(*padded)[:size].view(shape)
    return result


def gradient(op: str, input_at: int = 1) -> Kernel:
    """The gradient `op` (grad, …) of an activation, whose input is positional argument `input_at`.

    Both are of one shape; other arguments are numbers.
    """
    stock = stock_kernel(op)

    def differentiate(grad: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        before, x, behind = args[: input_at - 1], args[input_at - 1], args[input_at:]
        if grad.shape != x.shape or (_whole(grad) and _whole(x)):
            usual: torch.Tensor = stock(grad, *args, **kwargs)
            return usual
        return as_whole_vectors(
            lambda wide, padded: stock(wide, *before, padded, *behind, **kwargs), grad, x
        )

    return differentiate


def in_place(kernel: Kernel) -> Kernel:
    """`kernel` writing its result over its input."""

    def activate_(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x.copy_(kernel(x, *args, **kwargs))

    return activate_


def into_out(op: str, kernel: Kernel) -> Kernel:
    """The `out=` variant of `kernel`, which serves `op`. The stock op casts to other dtypes."""
    stock = stock_kernel(op)

    def activate(*args: Any, out: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result = kernel(*args, **kwargs)
        if out.dtype != result.dtype:
            stock(*args, out=out, **kwargs)  # refuses, or resizes
            return out.copy_(result)
        return out.resize_(result.shape).copy_(result)

    return activate


def of_pairs(op: str) -> Kernel:
    """The op `op` of two tensors that can be broadcast together, entry by entry."""
    stock = stock_kernel(op)

    def combine(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        dtype = torch.result_type(left, right)
        if not dtype.is_floating_point:
            result: torch.Tensor = stock(left, right)
            return result
        return as_whole_vectors(stock, *torch.broadcast_tensors(left.to(dtype), right.to(dtype)))

    return combine


_stock_glu = stock_kernel("glu")


def glu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """aten::glu: the first half of `x` along `dim`, times the sigmoid of the second."""
    if not -x.dim() <= dim < x.dim() or x.shape[dim] % 2 or not x.is_floating_point():
        refused: torch.Tensor = _stock_glu(x, dim)
        return refused
    halves = x.chunk(2, dim)
    return as_whole_vectors(lambda *both: _stock_glu(torch.cat(both), 0), *halves)


def _whole(x: torch.Tensor) -> bool:
    """True if every thread's part of `x` is whole vectors; integers have no vector kernel."""
    if not x.is_floating_point():
        return True
    return x.is_contiguous() and x.numel() % _unit(x.numel()) == 0


def _unit(size: int) -> int:
    """The number of elements of which a tensor of about `size` must be a multiple.

    Kernels use one thread per grain, or all threads from 16384 elements on (gelu).
    """
    if size < SPLIT_ELEMENTS:
        return VECTOR_ELEMENTS
    threads = torch.get_num_threads()
    return VECTOR_ELEMENTS * math.lcm(threads, min(threads, -(-size // GRAIN_ELEMENTS)))


def _padded_size(size: int) -> int:
    while size % (unit := _unit(size)) or not size:
        size += unit - size % unit
    return size


_OPS = (
    *("silu", "sigmoid", "gelu", "softplus", "elu", "mish", "exp2", "cosh", "sinh", "atanh"),
    *("digamma", "logit", "softshrink", "special_i0e"),
)
_PAIRS = ("atan2", "logaddexp", "logaddexp2", "igamma", "igammac")
_NOT_IN_PLACE = ("softplus", "softshrink", "special_i0e", "logaddexp", "logaddexp2", "glu")
_OUT_OF_PLACE: dict[str, Kernel] = (
    {op: in_whole_vectors(op) for op in _OPS} | {op: of_pairs(op) for op in _PAIRS} | {"glu": glu}
)
_GRADIENTS: dict[str, Kernel] = {
    op: gradient(op)
    for op in ("silu_backward", "gelu_backward", "softplus_backward", "mish_backward")
} | {"elu_backward": gradient("elu_backward", 5)}
KERNELS: dict[str, Kernel] = (
    _OUT_OF_PLACE
    | _GRADIENTS
    | {
        f"{op}_": in_place(kernel)
        for op, kernel in _OUT_OF_PLACE.items()
        if op not in _NOT_IN_PLACE
    }
    | {f"{op}.out": into_out(f"{op}.out", kernel) for op, kernel in _OUT_OF_PLACE.items()}
)
"""Overrides by aten op. tanh, exp, relu and others round alike in both kernels."""
