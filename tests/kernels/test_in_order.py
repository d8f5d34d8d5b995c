"""Products and a softmax whose sums run in order: zeros at either end of a sum change nothing.

Each check has its twin on stock ops, which fail it.
"""

from __future__ import annotations

import pytest
import torch

from detcheck.kernels.cpu import in_order
from detcheck.kernels.cpu.in_order import multiply
from detcheck.kernels.mode import batch_invariant

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PADDINGS = (1, 2, 3, 7, 16, 33, 250)

pytestmark = pytest.mark.usefixtures("two_threads")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def with_zeros(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (before, after))


def with_others(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """(B, K, N) with other rows at both ends of K, which meet zeros."""
    more = 3 * random(len(x), before + after, x.shape[2], dtype=x.dtype)
    return torch.cat((more[:, :before], x, more[:, before:]), 1)


def keys_that_move_values(weights: torch.Tensor, values: torch.Tensor) -> int:
    """Numbers of masked keys that change the product of (B, M, K) weights and (B, K, N) values."""
    whole = weights @ values
    return sum(
        not torch.equal(with_zeros(weights, *ends) @ with_others(values, *ends), whole)
        for padding in PADDINGS
        for ends in ((padding, 0), (0, padding), (padding, padding))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_keys_do_not_move_values(dtype: torch.dtype) -> None:
    weights = random(3, 5, 203, dtype=torch.float32).softmax(-1).to(dtype)
    values = random(3, 203, 48, dtype=dtype)
    with batch_invariant():
        assert keys_that_move_values(weights, values) == 0


def test_masked_keys_move_the_values_of_stock_products() -> None:
    assert keys_that_move_values(random(3, 5, 203).softmax(-1), random(3, 203, 48)) > 0


def entries_alone_that_differ(left: torch.Tensor, right: torch.Tensor) -> int:
    """Blocks of (B, M, K) x (B, K, N) that have other bits by themselves than in the whole."""
    whole = left @ right
    blocks = [
        (slice(b, b + 1), slice(m, m + rows), slice(n, n + columns))
        for b in range(len(left))
        for m, rows in ((0, 1), (3, 2), (left.shape[1] - 1, 1))
        for n, columns in ((0, 1), (5, 3), (right.shape[2] - 17, 17))
    ]
    return sum(
        not torch.equal(left[b, m].clone() @ right[b, :, n].clone(), whole[b, m, n])
        for b, m, n in blocks
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_scores_depend_on_one_query_and_one_key(dtype: torch.dtype, transposed: bool) -> None:
    left = random(4, 37, 96, dtype=dtype)
    right = random(4, 51, 96, dtype=dtype).mT if transposed else random(4, 96, 51, dtype=dtype)
    with batch_invariant():
        assert entries_alone_that_differ(left, right) == 0


def test_scores_of_stock_products_depend_on_others() -> None:
    assert entries_alone_that_differ(random(4, 37, 1536), random(4, 1536, 51)) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_close_to_stock(dtype: torch.dtype) -> None:
    left, right = random(4, 37, 96, dtype=dtype), random(4, 96, 51, dtype=dtype)
    expected, shares = left @ right, (left @ right).softmax(-1)
    with batch_invariant():
        torch.testing.assert_close(left @ right, expected)
        torch.testing.assert_close(expected.softmax(-1), shares, rtol=1e-2, atol=1e-3)


def masks_that_move_weights(scores: torch.Tensor, hidden: float) -> int:
    """Numbers of masked keys that change the softmax of (heads, queries, keys)."""
    keys, whole = scores.shape[-1], scores.softmax(-1)
    moved = 0
    for before, after in ((1, 0), (16, 0), (0, 5), (33, 7), (500, 0)):
        padded = torch.nn.functional.pad(scores, (before, after), value=hidden)
        moved += int(not torch.equal(padded.softmax(-1)[..., before : before + keys], whole))
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [-torch.inf, -1e4, "min"])
@pytest.mark.parametrize("keys", [9, 203])
def test_masked_keys_do_not_move_weights(
    dtype: torch.dtype, hidden: float | str, keys: int
) -> None:
    value = torch.finfo(dtype).min if hidden == "min" else hidden
    with batch_invariant():
        assert masks_that_move_weights(random(4, 9, keys, dtype=dtype), value) == 0


def test_masked_keys_move_weights_of_the_stock_softmax() -> None:
    """Only if there are few: for more it sums in double precision, which hides the order."""
    assert masks_that_move_weights(random(4, 9, 9), -torch.inf) > 0


def test_a_softmax_over_another_dim_is_the_same() -> None:
    scores = random(4, 9, 45)
    with batch_invariant():
        assert torch.equal(scores.mT.softmax(1).mT, scores.softmax(-1))


def test_a_product_by_a_weight_keeps_its_classes() -> None:
    """Long sums over features are not attention's: in order they would be slow."""
    weight = torch.nn.Parameter(random(3, 1100, 1100))
    x = random(3, 2, 1100)
    with batch_invariant(), torch.no_grad():
        assert torch.equal((x @ weight)[:, :1], x[:, :1].clone() @ weight)
        assert torch.equal((x @ weight.clone())[:, :1], x[:, :1].clone() @ weight.clone())


def test_gradients_are_those_of_stock() -> None:
    left, right = random(2, 5, 7).requires_grad_(), random(2, 7, 4).requires_grad_()
    stock = torch.autograd.grad((left @ right).softmax(-1).square().sum(), (left, right))
    with batch_invariant():
        ours = torch.autograd.grad((left @ right).softmax(-1).square().sum(), (left, right))
    torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize("entries", [1, 100, 1000, 10_000])
def test_parts_that_fit_the_cache_change_nothing(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = random(4, 37, 96), random(4, 96, 51)
    whole = multiply(left, right)
    monkeypatch.setattr(in_order, "PART_ENTRIES", entries)
    assert torch.equal(multiply(left, right), whole)
    assert multiply(left[:, :0], right).shape == (4, 0, 51)
    assert multiply(left, right[..., :0]).shape == (4, 37, 0)
