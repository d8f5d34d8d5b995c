"""Distances in units in the last place, against a count of representable values."""

from __future__ import annotations

import pytest
import torch

from detcheck.probes.bits import row_ulps, ulps


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("start", [1.0, -1.0, 0.0, 1e-7])
def test_steps_of_nextafter_are_counted(dtype: torch.dtype, start: float) -> None:
    x = torch.tensor([start], dtype=dtype)
    y = x.clone()
    for _ in range(5):
        y = torch.nextafter(y, torch.tensor([torch.inf], dtype=dtype))
    assert ulps(x, y).tolist() == ulps(y, x).tolist() == [5]


def test_zeros_of_both_signs_are_adjacent() -> None:
    assert ulps(torch.tensor([0.0]), torch.tensor([-0.0])).tolist() == [1]
    tiny = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    assert ulps(torch.tensor([tiny]), torch.tensor([-tiny])).tolist() == [3]


def test_bfloat16() -> None:
    x = torch.tensor([1.0, 256.0], dtype=torch.bfloat16)
    y = torch.tensor([1 + 2**-7, 250.0], dtype=torch.bfloat16)
    assert ulps(x, y).tolist() == [1, 6]


def test_the_largest_distances_do_not_overflow() -> None:
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    assert ulps(ends, ends.flip(0)).tolist() == [torch.iinfo(torch.int64).max] * 2
    assert ulps(torch.tensor([torch.nan]), torch.tensor([1.0])).item() > 1e6
    nan = torch.tensor([torch.nan])
    assert ulps(nan, nan.clone()).item() == 0


def test_integers_and_complex() -> None:
    assert ulps(torch.tensor([3, -2]), torch.tensor([5, -2])).tolist() == [2, 0]
    assert ulps(torch.tensor([True]), torch.tensor([False])).tolist() == [1]
    z = torch.tensor([[1 + 1j]])
    assert row_ulps(z, z.conj()).item() > 0


def test_rows() -> None:
    x = torch.ones(3, 2, 4)
    y = x.clone()
    y[1, 1, 2] = 1 + 2**-23
    assert row_ulps(x, y).tolist() == [0, 1, 0]
