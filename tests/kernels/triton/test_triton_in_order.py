"""Triton's sums in order: right, and masked keys change no bit, wherever they are."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from under_test import DEVICE, ROW_DTYPES, configs, in_segments, matmul, random, softmax

from detcheck.kernels.triton import in_order

KEYS, PADDING = 45, 7


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
def test_a_product_is_right_and_zeros_change_no_bit(dtype: torch.dtype) -> None:
    """As shares of keys times values: padded on either side, alone and in a batch."""
    left, right = random(1, 3, 5, KEYS, dtype=dtype), random(2, 3, KEYS, 70, dtype=dtype)
    out = matmul.bmm(left, right)
    exact = left.double() @ right.double()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    for before, after in ((PADDING, 0), (0, PADDING), (1, 64)):
        shares = F.pad(left, (before, after))
        values = F.pad(right, (0, 0, before, after), value=-9.0)
        assert torch.equal(matmul.bmm(shares, values), out)
    assert torch.equal(matmul.bmm(left[1:2, 2:3], right[1:2])[0, 0], out[1, 2])
    transposed = right.mT.contiguous().mT
    assert torch.equal(matmul.bmm(left, transposed), out)


def test_the_same_check_catches_sums_in_blocks() -> None:
    """Sums of segments, whose borders padding moves."""
    left, right = random(1, 1, 5, 90), random(2, 1, 90, 70)
    tile = configs.FLOAT32[0][1]
    cut = in_segments(left, right, None, tile, 32)
    moved = in_segments(F.pad(left, (7, 0)), F.pad(right, (0, 0, 7, 0)), None, tile, 32)
    torch.testing.assert_close(cut, moved)
    assert not torch.equal(cut, moved)


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
def test_softmax_over_keys_is_right_and_masked_keys_change_no_bit(dtype: torch.dtype) -> None:
    x = random(1, 2, 3, 5, KEYS, dtype=dtype)
    out = softmax.softmax(x, -1, False)
    torch.testing.assert_close(out.float(), x.float().softmax(-1), rtol=1e-2, atol=1e-3)
    lowest = torch.finfo(dtype).min
    for before, after in ((PADDING, 0), (0, PADDING)):
        padded = softmax.softmax(F.pad(x, (before, after), value=lowest), -1, False)
        assert torch.equal(padded[..., before : before + KEYS], out)
        assert not padded[..., :before].any()
    assert torch.equal(softmax.softmax(x[1:, :1], -1, False), out[1:, :1])


def test_the_same_check_catches_a_softmax_in_blocks() -> None:
    x = random(1, 64, KEYS)  # rows of two dims, such as logits, keep blocks from the row's start
    padded = softmax.softmax(F.pad(x, (PADDING, 0), value=-1e30), -1, False)
    assert not torch.equal(padded[:, PADDING:], softmax.softmax(x, -1, False))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinite_scores_are_those_of_the_stock_op() -> None:
    x = random(1, 1, 4, 6)
    x[0, 0, 2] = torch.nan
    x[0, 1] = -torch.inf
    x[0, 2, :3] = -torch.inf
    assert torch.equal(in_order.softmax(x).isnan(), x.softmax(-1).isnan())


def test_gradients_of_softmax_are_those_of_the_stock_op() -> None:
    x = random(1, 2, 3, 9).requires_grad_()
    y = x.detach().double().requires_grad_()
    weight = torch.arange(9.0, device=DEVICE)
    (in_order.Softmax.apply(x) * weight).square().sum().backward()
    (y.softmax(-1) * weight).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad.float(), rtol=1e-4, atol=1e-5)
