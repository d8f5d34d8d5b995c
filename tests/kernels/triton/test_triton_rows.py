"""Triton's norm, softmax and reductions: right, and each row the same bits in every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from under_test import DEVICE, ROW_DTYPES, norm, random, reduce, rows_differ, softmax, topk

LENGTHS = (1, 100, 4097)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    weight = random(9, x.shape[-1], dtype=x.dtype)
    return norm.fused_rms_norm(x, [x.shape[-1]], weight, 1e-6)[0]


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    weight, bias = (random(seed, x.shape[-1], dtype=x.dtype) for seed in (9, 10))
    return norm.layer_norm(x, [x.shape[-1]], weight, bias, 1e-5)[0]


ROW_OPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "prod": lambda x: reduce.prod_dim(x, -1),
    "logsumexp": lambda x: reduce.logsumexp(x, [-1]),
    "norm": lambda x: reduce.vector_norm(x, 2, [-1]),
    "norm of order 3": lambda x: reduce.vector_norm(x, 3, [-1]),
    "softmax": lambda x: softmax.softmax(x, -1, False),
    "log_softmax": lambda x: softmax.log_softmax(x, -1, False),
    "mean": lambda x: reduce.mean_dims(x, [-1], True),
    "sum": lambda x: reduce.sum_dims(x, [-1]),
    "running sums": lambda x: reduce.cumsum(x, -1),
}


@pytest.mark.parametrize("name", ROW_OPS)
@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_row_is_the_same_in_every_call(name: str, dtype: torch.dtype, length: int) -> None:
    assert rows_differ(ROW_OPS[name], random(1, 5, length, dtype=dtype)) == []


def test_the_same_check_catches_a_sum_that_depends_on_the_batch() -> None:
    """What not to do: blocks as long as the rows in flight leave room for."""

    def by_batch(x: torch.Tensor) -> torch.Tensor:
        parts = x.view(len(x), 64 if len(x) == 1 else 32, -1)
        total = torch.zeros(len(x), device=x.device)
        for index in range(parts.shape[1]):
            total += reduce.sum_dims(parts[:, index], [-1])
        return total

    assert "neighbours" in rows_differ(by_batch, random(2, 5, 8192))


@pytest.mark.parametrize("dim", [[-1], [1], [0, 2], [0], None])
@pytest.mark.parametrize("keepdim", [True, False])
def test_reductions_are_right(dim: list[int] | None, keepdim: bool) -> None:
    x = random(3, 3, 4, 20)
    dims = [0, 1, 2] if dim is None else dim
    torch.testing.assert_close(reduce.sum_dims(x, dim, keepdim), torch.sum(x, dims, keepdim))
    torch.testing.assert_close(reduce.mean_dims(x, dim, keepdim), torch.mean(x, dims, keepdim))


def test_reductions_take_the_dtypes_that_stock_takes() -> None:
    half = random(4, 3, 300, dtype=torch.bfloat16)
    wide = reduce.sum_dims(half, [-1], dtype=torch.float32)
    torch.testing.assert_close(wide, half.float().sum(-1))
    doubles = random(5, 3, 300).double()
    torch.testing.assert_close(
        reduce.mean_dims(doubles, [-1]), doubles.mean(-1), rtol=1e-15, atol=0
    )
    numbers = torch.arange(6, device=DEVICE).view(2, 3)
    assert torch.equal(reduce.sum_dims(numbers, [1]), numbers.sum(1))
    assert torch.equal(reduce.sum_dims(numbers > 1, [1]), (numbers > 1).sum(1))


def test_reductions_of_nothing() -> None:
    empty = random(6, 2, 0)
    assert torch.equal(reduce.sum_dims(empty, [1]), empty.sum(1))
    assert reduce.mean_dims(empty, [1]).isnan().all()
    assert torch.equal(
        reduce.mean_dims(torch.tensor(3.0, device=DEVICE), None).cpu(), torch.tensor(3.0)
    )


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_softmax_is_right(dim: int, dtype: torch.dtype) -> None:
    x = random(7, 3, 2, 20).to(dtype)
    torch.testing.assert_close(softmax.softmax(x, dim, False), x.softmax(dim))
    torch.testing.assert_close(softmax.log_softmax(x, dim, False), x.log_softmax(dim))


def test_softmax_of_half_precision_can_be_wide() -> None:
    x = random(8, 3, 40, dtype=torch.float16)
    wide = softmax.softmax(x, -1, True)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, x.float().softmax(-1))


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
def test_rms_norm_is_right(dtype: torch.dtype) -> None:
    x, weight = random(1, 4, 3, 70, dtype=dtype), random(2, 70, dtype=dtype)
    out, rstd = norm.fused_rms_norm(x, [70], weight, 1e-6)
    expected = F.rms_norm(x.double(), (70,), weight.double(), 1e-6)
    torch.testing.assert_close(out, expected.to(dtype))
    torch.testing.assert_close(rstd, x.double().pow(2).mean(-1, keepdim=True).rsqrt().float())
    plain, _ = norm.fused_rms_norm(x, [3, 70], None, None)
    torch.testing.assert_close(plain, F.rms_norm(x, (3, 70)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(70,), (3, 70)])
def test_layer_norm_is_right(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight, bias = random(1, 4, 3, 70, dtype=dtype), *random(2, 2, *shape, dtype=dtype)
    out, mean, rstd = norm.layer_norm(x, shape, weight, bias, 1e-5)
    expected = F.layer_norm(x.double(), shape, weight.double(), bias.double())
    torch.testing.assert_close(out, expected.to(dtype))
    stock = torch.native_layer_norm(x.float(), shape, weight.float(), bias.float(), 1e-5)
    torch.testing.assert_close(mean, stock[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rstd, stock[2], rtol=1e-4, atol=1e-5)
    plain = norm.layer_norm(x, shape, None, None, 1e-5)[0]
    torch.testing.assert_close(plain, F.layer_norm(x.double(), shape).to(dtype))


def test_layer_norm_of_nothing() -> None:
    out, mean, rstd = norm.layer_norm(random(1, 0, 8), [8], None, None, 1e-5)
    assert out.shape == (0, 8)
    assert mean.shape == rstd.shape == (0, 1)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 0.5, float("inf"), -float("inf")])
@pytest.mark.parametrize("dim", [None, [-1], [0, 2]])
def test_vector_norms_are_right(order: float, dim: list[int] | None) -> None:
    x = random(1, 3, 4, 20)
    x[0, 0, :3] = 0
    expected = torch.linalg.vector_norm(x, order, dim)
    torch.testing.assert_close(reduce.vector_norm(x, order, dim), expected)
    wide = reduce.vector_norm(x.half(), order, dim, True, dtype=torch.float32)
    stock = torch.linalg.vector_norm(x.half(), order, dim, True, dtype=torch.float32)
    torch.testing.assert_close(wide, stock)


def test_vector_norms_of_other_dtypes_and_of_nothing_are_stock() -> None:
    turned = torch.complex(random(1, 5), random(2, 5))
    assert torch.equal(reduce.vector_norm(turned), torch.linalg.vector_norm(turned))
    assert torch.equal(reduce.vector_norm(random(3, 2, 0), 2, [1]), torch.zeros(2, device=DEVICE))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, interpreted
@pytest.mark.parametrize("keepdim", [True, False])
def test_logsumexp_is_right_with_infinite_entries(keepdim: bool) -> None:
    x = random(1, 5, 4, 30) * 100
    x[0, 0] = -float("inf")
    x[1, 1, 3] = float("inf")
    x[2, 2, :7] = -float("inf")
    for dim in ([-1], [0, 2], 1):
        torch.testing.assert_close(reduce.logsumexp(x, dim, keepdim), x.logsumexp(dim, keepdim))
    whole = torch.arange(6, device=DEVICE).view(2, 3)
    torch.testing.assert_close(reduce.logsumexp(whole, [1]), whole.logsumexp(1))
    assert reduce.logsumexp(random(2, 3, 0), [1]).eq(-float("inf")).all()


def test_products_are_right() -> None:
    x = random(1, 3, 4, 20)
    for dim in (0, -1):
        torch.testing.assert_close(reduce.prod_dim(x, dim, True), x.prod(dim, True))
    whole = torch.arange(1, 7, device=DEVICE).view(2, 3)
    assert torch.equal(reduce.prod_dim(whole, 1), whole.prod(1))
    assert torch.equal(reduce.prod_dim(random(2, 3, 0), 1), torch.ones(3, device=DEVICE))


def test_nansum_leaves_nans_out() -> None:
    x = random(1, 3, 40)
    x[0, 3] = x[2] = float("nan")
    torch.testing.assert_close(reduce.nansum(x, [1]), x.nansum(1))
    whole = torch.arange(6, device=DEVICE).view(2, 3)
    assert torch.equal(reduce.nansum(whole, [1]), whole.sum(1))


@pytest.mark.parametrize("dtype", [*ROW_DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "k", "dim"),
    [((5, 128), 8, -1), ((3, 7, 4), 2, 1), ((2, 5000), 3, -1), ((4, 6), 6, 0)],
)
@pytest.mark.parametrize("largest", [True, False])
def test_of_equal_entries_the_first_comes_first(
    dtype: torch.dtype, shape: tuple[int, ...], k: int, dim: int, largest: bool
) -> None:
    k = min(k, shape[dim])
    x = ((random(1, *shape) * 3).round() / 2).to(dtype)  # with many equal entries
    values, indices = topk.topk(x, k, dim, largest)
    expected = torch.sort(x, dim=dim, descending=largest, stable=True)
    assert torch.equal(values, expected.values.narrow(dim, 0, k))
    assert torch.equal(indices, expected.indices.narrow(dim, 0, k))


def test_the_same_check_finds_equal_entries_in_another_order() -> None:
    x = (random(1, 5, 128) * 3).round()
    values, indices = topk.topk(x.flip(1), 8)
    expected = torch.sort(x, dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :8])
    assert not torch.equal(127 - indices, expected.indices[:, :8])


def test_infinities_zeros_and_nans_are_in_order() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, nan, inf, -0.0, 0.0, -inf, -nan]], device=DEVICE)
    assert topk.topk(x, 7)[1].tolist() == [[1, 6, 2, 0, 3, 4, 5]]
    assert topk.topk(x, 4, largest=False)[1].tolist() == [[5, 3, 4, 0]]


def test_topk_of_other_dtypes_and_of_nothing_is_stock() -> None:
    whole = torch.tensor([[3, 1, 2]], device=DEVICE)
    assert topk.topk(whole, 2)[0].tolist() == [[3, 2]]
    values, indices = topk.topk(random(1, 0, 8), 2)
    assert values.shape == indices.shape == (0, 2)
    assert topk.topk(random(1, 3, 8), 0)[0].shape == (3, 0)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_running_sums_are_right(dim: int) -> None:
    """For a transpose too; the second call is a kept one."""
    for x in (random(1, 3, 5, 20), random(3, 20, 5, 3).mT):
        for _ in range(2):
            torch.testing.assert_close(reduce.cumsum(x, dim), x.cumsum(dim), rtol=1e-5, atol=1e-5)
    half = random(4, 3, 4, 30, dtype=torch.bfloat16)
    wide = reduce.cumsum(half, dim, dtype=torch.float32)
    torch.testing.assert_close(wide, half.float().cumsum(dim), rtol=1e-5, atol=1e-5)


def test_running_sums_of_a_mask_are_exact() -> None:
    """As OPT counts positions: whole numbers, whatever the padding."""
    mask = torch.ones(2, 5000, device=DEVICE)
    mask[1, :77] = 0
    assert torch.equal(reduce.cumsum(mask, 1), mask.long().cumsum(1).float())


def test_running_sums_of_other_dtypes_and_of_nothing_are_stock() -> None:
    whole = torch.arange(6, device=DEVICE).view(2, 3)
    for x in (whole, whole > 2, random(1, 2, 0), random(1, 3)[0], random(1, 2, 3).to(torch.cfloat)):
        assert torch.equal(reduce.cumsum(x, 0), x.cumsum(0))
    assert reduce.cumsum(random(1, 4), 0, dtype=torch.int64).dtype == torch.int64
