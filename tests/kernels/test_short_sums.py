"""Products summed in order by the stock kernel: they have the bits of the loop, or are refused."""

from __future__ import annotations

import pytest
import torch

from detcheck.kernels.cpu import short_sums
from detcheck.kernels.cpu.in_order import multiply, multiply_by_loop

pytestmark = pytest.mark.usefixtures("two_threads")

SHAPES = [
    (1, 1, 5, 1),
    (3, 1, 64, 100),
    (3, 64, 128, 1),
    (70, 5, 17, 33),
    (2, 101, 192, 16),
    (2, 1, 193, 64),
    (5, 37, 211, 24),
    (9, 3, 400, 2),
    (2, 70, 700, 64),
]
"""B, M, K and N."""


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_sums, "_in_order", {})


def operands(batch: int, rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(batch, rows, inner, generator=generator)
    return left, torch.randn(batch, inner, columns, generator=generator)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_have_the_bits_of_the_loop(
    shape: tuple[int, int, int, int], transposed: bool
) -> None:
    left, right = operands(*shape)
    expected = multiply_by_loop(left, right)
    if transposed:
        left, right = (x.mT.contiguous().mT for x in (left, right))
    total = short_sums.multiply(left, right, multiply_by_loop)
    assert total is None or torch.equal(total, expected)
    assert torch.equal(multiply(left, right), expected)


def test_stock_products_differ_from_the_loop() -> None:
    """The twin: long sums, and a single row."""
    for shape in ((2, 70, 700, 64), (3, 1, 64, 100)):
        left, right = operands(*shape)
        assert not torch.equal(left @ right, multiply_by_loop(left, right))


def test_a_kernel_that_sums_in_another_order_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_end(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return multiply_by_loop(left.flip(2), right.flip(1))

    monkeypatch.setattr(short_sums, "_call", from_the_end)
    left, right = operands(2, 9, 40, 20)
    assert short_sums.multiply(left, right, multiply_by_loop) is None
    assert torch.equal(multiply(left, right), multiply_by_loop(left, right))


def test_one_row_in_another_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may compute the last rows and columns differently from the others."""
    for row, column in ((8, None), (None, 19)):

        def at_the_edge(
            left: torch.Tensor,
            right: torch.Tensor,
            row: int | None = row,
            column: int | None = column,
        ) -> torch.Tensor:
            product = multiply_by_loop(left, right)
            other = multiply_by_loop(left.flip(2), right.flip(1))
            where = (slice(None), slice(row, None) if row else slice(None), slice(column, None))
            product[where] = other[where]
            return product

        monkeypatch.setattr(short_sums, "_in_order", {})
        monkeypatch.setattr(short_sums, "_call", at_the_edge)
        assert short_sums.multiply(*operands(2, 9, 40, 20), multiply_by_loop) is None


def test_a_last_column_in_another_order_is_found_at_every_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With several threads one may be left with it alone: then only four entries show it."""

    def by_halves(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product, column = multiply_by_loop(left, right), right[:, :, -1:]
        half = left.shape[2] // 2
        product[..., -1:] = multiply_by_loop(left[..., :half], column[:, :half])
        product[..., -1:] += multiply_by_loop(left[..., half:], column[:, half:])
        return product

    monkeypatch.setattr(short_sums, "_call", by_halves)
    for inner in (5, 20, 60):
        for columns in range(17, 60):
            assert short_sums.multiply(*operands(1, 4, inner, columns), multiply_by_loop) is None


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_row_that_is_not_finite_does_not_change_the_others(value: float) -> None:
    left, right = operands(2, 9, 300, 20)
    expected = multiply(left, right)
    left[0, 4, 7] = value
    total = multiply(left, right)
    assert not total[0, 4].isfinite().any()
    total[0, 4] = expected[0, 4]
    assert torch.equal(total, expected)


def test_each_shape_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    probe = short_sums._sums_in_order
    monkeypatch.setattr(
        short_sums,
        "_sums_in_order",
        lambda shape, loop: compared.append(shape) or probe(shape, loop),
    )
    for batch in (2, 2, 7, 9):  # more products than are compared: the same call
        multiply(*operands(batch, 9, 40, 20))
    assert [shape.left[0] for shape in compared] == [2, 5]
