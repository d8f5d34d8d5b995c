"""Norms, softmax, reductions and activations: a row has the same bits in any batch.

Each check has its twin on the stock op, at a shape where that op fails it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.self_check import CHECKS
from detcheck.probes.asserts import NotBatchInvariant, assert_batch_invariant

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (1, 33, 576, 1000)
LONG = (32768, 50257)
Function = Callable[[torch.Tensor], torch.Tensor]


pytestmark = pytest.mark.usefixtures("two_threads")


def rows(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of widely differing magnitudes, whose sums cancel."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(count, *shape, generator=generator)
    return (x * torch.randn(count, *shape, generator=generator).exp()).to(dtype)


def written_out(x: torch.Tensor) -> torch.Tensor:
    """RMSNorm as models write it that compute it in their own dtype."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


NORM: dict[str, Function] = {
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "written_out": written_out,
}
SOFTMAX: dict[str, Function] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmax_32": lambda x: F.softmax(x, -1, dtype=torch.float32),
}
REDUCE: dict[str, Function] = {
    "mean": lambda x: x.mean(-1),
    "mean_kept": lambda x: x.pow(2).mean(-1, keepdim=True),
    "sum": lambda x: x.sum(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "norm": lambda x: x.norm(dim=-1),
    "prod": lambda x: (1 + x.double() / 1e5).float().prod(-1),
}
POINTWISE: dict[str, Function] = {
    "silu": F.silu,
    "silu_": lambda x: F.silu(x, inplace=True),
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "elu": F.elu,
    "mish": F.mish,
}
ALL = NORM | SOFTMAX | REDUCE | POINTWISE


SWEPT_FLOATS = [
    torch.bfloat16,
    *(pytest.param(x, marks=pytest.mark.sweep) for x in FLOATS if x != torch.bfloat16),
]


@pytest.mark.parametrize("dtype", SWEPT_FLOATS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_depend_on_the_batch(name: str, dtype: torch.dtype) -> None:
    same_for_all = (
        name == "layer_norm" or "softmax" in name
    )  # for a single element all rows give 0, or 1
    with batch_invariant():
        for width in WIDTHS[1:] if same_for_all else WIDTHS:
            assert_batch_invariant(ALL[name], rows(33, width, dtype=dtype))


@pytest.mark.parametrize("dtype", SWEPT_FLOATS, ids=str)
@few("name", [*SOFTMAX, *REDUCE, "rms_norm", "silu"], every=4)
def test_long_rows_do_not_depend_on_the_batch(name: str, dtype: torch.dtype) -> None:
    with batch_invariant():
        for width in LONG:
            assert_batch_invariant(
                ALL[name], rows(5, width, dtype=dtype), relations=("batch-size", "position")
            )


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (written_out, rows(65, 576, dtype=torch.bfloat16)),
        (written_out, rows(65, 576, dtype=torch.float16)),
        (lambda x: x.softmax(1), rows(9, 64, 33)),
        (REDUCE["sum"], rows(5, 49152)),
        (REDUCE["mean"], rows(5, 50257)),
        (REDUCE["prod"], rows(5, 50257)),
        (lambda x: x.std(-1), rows(5, 33, dtype=torch.float64)),
        (lambda x: x.var(-1, keepdim=True), rows(5, 33, dtype=torch.float64)),
        (POINTWISE["silu"], rows(65, 127)),
        (POINTWISE["gelu"], rows(65, 127, dtype=torch.float16)),
        (POINTWISE["sigmoid"], rows(65, 2049)),
    ],
)
def test_the_same_check_catches_the_stock_op(function: Function, x: torch.Tensor) -> None:
    with pytest.raises(NotBatchInvariant):
        assert_batch_invariant(function, x)
    with batch_invariant():
        assert_batch_invariant(function, x)


LAYOUTS: dict[str, Function] = {
    "sum over two": lambda x: x.sum((1, 2)),
    "sum over the middle": lambda x: x.sum(1),
    "mean over the middle": lambda x: x.mean(1),
    "mean over two": lambda x: x.mean((-1, -2), keepdim=True),
    "sum of a transpose": lambda x: x.transpose(1, 2).sum(1),
    "sum of a transpose over two": lambda x: x.transpose(1, 2).sum((1, 2)),
    "softmax over the middle": lambda x: x.softmax(1),
    "log-softmax over the middle": lambda x: x.log_softmax(1),
    "logsumexp over the middle": lambda x: x.logsumexp(1),
    "silu of a slice": lambda x: F.silu(x[:, :, : x.shape[2] // 2 + 1]),
    "gelu of a transpose": lambda x: F.gelu(x.transpose(1, 2)),
}


@few("name", LAYOUTS, every=4)
@few("shape", [(64, 577), (129, 65), (33000, 1), (1, 40000)])
def test_other_layouts_do_not_depend_on_the_batch(name: str, shape: tuple[int, int]) -> None:
    if "softmax" in name and shape[0] == 1:
        pytest.skip("a softmax of one element is 1 whatever the row")
    with batch_invariant():
        for dtype in (torch.float32, torch.bfloat16):
            assert_batch_invariant(
                LAYOUTS[name], rows(5, *shape, dtype=dtype), relations=("batch-size", "position")
            )


@few("name", ALL | LAYOUTS, every=5)
@few("shape", [(1, 40, 1000), (3, 5, 33)])
def test_values_and_gradients_are_those_of_stock(name: str, shape: tuple[int, ...]) -> None:
    if name == "silu_":
        pytest.skip("a leaf cannot be written on")
    function = (ALL | LAYOUTS)[name]
    x = rows(*shape, dtype=torch.float64).clamp(-9, 9).requires_grad_()
    stock = function(x)
    (stock_gradient,) = torch.autograd.grad(stock.square().sum(), x)
    with batch_invariant():
        ours = function(x)
        (gradient,) = torch.autograd.grad(ours.square().sum(), x)
    torch.testing.assert_close(ours, stock)
    computed = ours.dtype  # a gradient is not more exact than the values are
    torch.testing.assert_close(gradient.to(computed), stock_gradient.to(computed))


def test_a_product_of_all_entries_has_the_bits_of_a_row() -> None:
    row = 1 + rows(1, 50257)[0] / 1e5
    assert row.prod() != row.expand(2, -1).prod(-1)[0]
    with batch_invariant("reduce"):
        assert row.prod() == row.expand(2, -1).prod(-1)[0]


def test_odd_arguments_still_work() -> None:
    x = rows(1, 40000)
    with batch_invariant():
        torch.testing.assert_close(x.sum(), x.double().sum().float(), rtol=1e-4, atol=1e-2)
        assert x.sum(dim=()).shape == ()
        assert x.sum((0, 1), keepdim=True).shape == (1, 1)
        assert x.mean(-1, dtype=torch.float64).dtype == torch.float64
        assert torch.ones(40000, dtype=torch.int32).sum(0).item() == 40000
        assert torch.linalg.vector_norm(x).shape == ()
        assert F.silu(torch.ones(())).shape == ()
        assert F.silu(torch.empty(0, 3)).shape == (0, 3)
        assert torch.sigmoid(torch.arange(3)).dtype == torch.float32
        assert torch.tensor(2.0).softmax(0).item() == 1
        x3 = rows(2, 3, 5)
        assert torch.equal(x3.sum(1, keepdim=True)[:, 0], x3.sum(1))


@pytest.mark.parametrize("family", ["norm", "softmax", "reduce", "pointwise"])
def test_the_self_check_of_a_family_can_fail(family: str) -> None:
    assert "alone" in (CHECKS[family]() or "")
    with batch_invariant([family]) as mode:
        assert mode.proof().self_check == "passed"
    assert mode.proof().idle_families == (family,)


@few("num_threads", [3, 5, 7])
def test_threads_that_do_not_divide_the_width_do_not_matter(num_threads: int) -> None:
    """Their shares of rows of 1540 begin inside a vector."""
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        x = rows(107, 1540)
        with pytest.raises(NotBatchInvariant):
            assert_batch_invariant(F.mish, x, relations="batch-size")
        with batch_invariant():
            assert_batch_invariant(F.mish, x, relations="batch-size")
            assert_batch_invariant(F.gelu, x, relations="batch-size")
    finally:
        torch.set_num_threads(threads)
