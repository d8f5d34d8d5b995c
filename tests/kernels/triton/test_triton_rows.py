"""Triton's norm, softmax and reductions: right, and each row the same bits in every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from under_test import DEVICE, ROW_DTYPES, norm, random, reduce, rows_differ, softmax

LENGTHS = (1, 100, 4097)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    weight = random(9, x.shape[-1], dtype=x.dtype)
    return norm.fused_rms_norm(x, [x.shape[-1]], weight, 1e-6)[0]


ROW_OPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rms_norm": rms_norm,
    "softmax": lambda x: softmax.softmax(x, -1, False),
    "log_softmax": lambda x: softmax.log_softmax(x, -1, False),
    "mean": lambda x: reduce.mean_dims(x, [-1], True),
    "sum": lambda x: reduce.sum_dims(x, [-1]),
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

    assert "neighbours" in rows_differ(by_batch, random(2, 5, 2048))


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
