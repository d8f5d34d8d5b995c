"""A row's result depends neither on its batch nor on where the batch lies in memory.

Every dim of a tensor may be the batch, and the tensor may be transposed, strided or expanded.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.mode import batch_invariant

SHAPES = ((33, 17, 100), (64, 3, 33), (5, 7, 1000))
Function = Callable[[torch.Tensor, int], torch.Tensor]


pytestmark = pytest.mark.usefixtures("two_threads")


REDUCTIONS: dict[str, Function] = {
    "mean": lambda x, dim: x.mean(dim),
    "sum": lambda x, dim: x.sum(dim),
    "nansum": lambda x, dim: x.nansum(dim),
    "prod": lambda x, dim: (1 + x / 1e3).prod(dim),
    "logsumexp": lambda x, dim: x.logsumexp(dim),
    "std": lambda x, dim: x.std(dim),
    "var": lambda x, dim: x.var(dim, unbiased=False),
    "max": lambda x, dim: x.max(dim).values,
    "amin": lambda x, dim: x.amin(dim),
    "norm": lambda x, dim: x.norm(dim=dim),
    "norm of order 3": lambda x, dim: x.norm(3, dim=dim),
}
SAME_SHAPE: dict[str, Function] = {
    "mean, kept": lambda x, dim: x.square().mean(dim, keepdim=True),
    "softmax": lambda x, dim: x.softmax(dim),
    "log_softmax": lambda x, dim: x.log_softmax(dim),
    "cumsum": lambda x, dim: x.cumsum(dim),
    "silu": lambda x, dim: F.silu(x),
    "rms_norm": lambda x, dim: F.rms_norm(x.movedim(dim, -1), x.shape[dim : dim + 1]).movedim(
        -1, dim
    ),
    "layer_norm": lambda x, dim: F.layer_norm(x.movedim(dim, -1), x.shape[dim : dim + 1]).movedim(
        -1, dim
    ),
}
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "first two swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "first dim innermost": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "second dim innermost": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "strided": lambda x: torch.stack((x, 3 * x), -1)[..., 0],
    "part of a larger tensor": lambda x: F.pad(x, (3, 2, 1, 0))[:, 1:, 3:-2],
}


def values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator)
    return (x * torch.randn(shape, generator=generator).exp()).to(dtype)


def entries_that_differ(name: str, x: torch.Tensor) -> int:
    """Entries of the batch, along any dim but the reduced one, that are not what they are alone."""
    function = (REDUCTIONS | SAME_SHAPE)[name]
    differ = 0
    for dim in range(3):
        whole = function(x, dim)
        for batch in {0, 1, 2} - {dim}:
            place = batch - (name in REDUCTIONS and batch > dim)
            for at in (0, x.shape[batch] // 2, x.shape[batch] - 1):
                part = x.narrow(batch, at, 1)
                for alone in (part, part.clone(memory_format=torch.contiguous_format)):
                    one = function(alone, dim).select(place, 0)
                    differ += not torch.equal(one, whole.select(place, at))
    return differ


@few("dtype", [torch.float32, torch.bfloat16], ids=str)
@few("name", REDUCTIONS | SAME_SHAPE, every=6)
def test_entries_do_not_depend_on_the_batch_in_any_layout(name: str, dtype: torch.dtype) -> None:
    with batch_invariant():
        for shape in SHAPES:
            for lay_out in LAYOUTS.values():
                assert entries_that_differ(name, lay_out(values(shape, dtype))) == 0


STOCK_HOLDS = ("norm of order 3", "cumsum", "layer_norm", "std", "var", "max", "amin")
"""Ops whose stock kernels pass this check already."""


@pytest.mark.parametrize("name", sorted({*REDUCTIONS, *SAME_SHAPE} - {*STOCK_HOLDS}))
def test_the_same_check_catches_the_stock_op(name: str) -> None:
    found = [
        entries_that_differ(name, lay_out(values(shape, torch.float32)))
        for shape in SHAPES
        for lay_out in LAYOUTS.values()
    ]
    assert sum(found) > 0


def test_expanded_tensors_are_reduced_as_their_copies() -> None:
    x = values((5, 1, 577), torch.float32).expand(5, 9, 577)
    with batch_invariant():
        for name, function in REDUCTIONS.items():
            for dim in range(3):
                assert torch.equal(function(x, dim), function(x.clone(), dim)), name


DIMS = ((0,), (1,), (-1,), (0, 1), (0, 2), (-1, -3), (0, 1, 2))


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_several_dims_give_the_values_and_shapes_of_stock(
    dims: tuple[int, ...], keepdim: bool
) -> None:
    x = LAYOUTS["second dim innermost"](values((5, 7, 9), torch.float64))
    functions = (x.mean, x.nansum, x.logsumexp, x.std, x.var)
    stock = [function(dims, keepdim=keepdim) for function in functions]
    with batch_invariant():
        ours = [function(dims, keepdim=keepdim) for function in functions]
    for one, expected in zip(ours, stock, strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("dims", [(3,), (-4,), (0, 0), 5])
def test_wrong_dims_fail_as_in_stock(dims: tuple[int, ...] | int) -> None:
    x = values((5, 7, 9), torch.float32)
    with pytest.raises((IndexError, RuntimeError)) as stock:
        x.sum(dims)
    with batch_invariant(), pytest.raises(type(stock.value)) as ours:
        x.sum(dims)
    assert str(ours.value) == str(stock.value)
    with batch_invariant(), pytest.raises(IndexError):
        x.softmax(3)


def test_tensors_without_dims_or_entries_still_work() -> None:
    with batch_invariant():
        assert torch.tensor(3.0).sum(0).item() == 3
        assert torch.tensor(3.0).mean(dim=()).item() == 3
        assert torch.zeros(0, 4).sum(0).tolist() == [0, 0, 0, 0]
        assert torch.zeros(4, 0).t().sum(0).tolist() == [0, 0, 0, 0]
