"""Ops that PyTorch computes by another formula for other sizes: a row is the same in any batch.

Each check has its twin on the stock op, at sizes where PyTorch changes the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from products import cancelling
from sweeps import few
from torch import nn

from detcheck.kernels.cpu.matmul import CLASSES
from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.usefixtures("two_threads")

ROWS, WEIGHT = cancelling(40, 96, 24, torch.float32)
GAPS = torch.zeros(1, 192)[:, ::2].copy_(WEIGHT[:1])
"""A weight of one row, with gaps in memory."""
SECOND = torch.linspace(-1, 1, 24 * 50).view(24, 50)
Function = Callable[[torch.Tensor], torch.Tensor]
FUNCTIONS: dict[str, Function] = {
    "multi_dot": lambda x: torch.linalg.multi_dot([x, WEIGHT.t(), SECOND]),
    "chain_matmul": lambda x: torch.chain_matmul(x, WEIGHT.t(), SECOND),
    "inner": lambda x: torch.inner(x, WEIGHT[:1]),
    "inner, gaps": lambda x: torch.inner(x, GAPS),
    "tensordot": lambda x: torch.tensordot(x.view(-1, 8, 12), GAPS.reshape(8, 12), 2),
    "cdist": lambda x: torch.cdist(x, WEIGHT),
}
SIZES = (1, 2, 25, 26)


def rows_that_differ(function: Function) -> int:
    """Rows of smaller batches, from either end, that are not bitwise those of the whole batch."""
    whole = function(ROWS)
    differ = 0
    for size in SIZES:
        for start in (0, len(ROWS) - size):
            part = function(ROWS[start : start + size])
            differ += int((part != whole[start : start + size]).view(size, -1).any(-1).sum().item())
    return differ


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
@few("name", FUNCTIONS)
def test_rows_do_not_depend_on_the_formula(name: str) -> None:
    assert rows_that_differ(FUNCTIONS[name]) > 0
    with batch_invariant("matmul"):
        assert rows_that_differ(FUNCTIONS[name]) == 0


class OneProduct(nn.Module):
    """A row by a vector: PyTorch takes `dot` for them, and `mv` for a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ WEIGHT[0]


def test_a_row_by_a_vector_has_the_bits_of_a_batch() -> None:
    module = OneProduct()
    whole = module(ROWS)
    assert any(module(row) != one for row, one in zip(ROWS, whole, strict=True))
    with batch_invariant() as mode:
        whole = module(ROWS)
        assert all(module(row) == one for row, one in zip(ROWS, whole, strict=True))
    assert mode.proof().fault is None


class LeastWork:
    """Stands for `opt_einsum`: a batch of one begins at the left, others begin at the right."""

    @staticmethod
    def contract_path(
        _equation: str, rows: torch.Tensor, *_operands: torch.Tensor, **_options: Any
    ) -> tuple[Sequence[tuple[int, int]], None]:
        return [(0, 1) if len(rows) == 1 else (1, 2), (0, 1)], None


@pytest.fixture
def orders_by_size(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """PyTorch's settings of `opt_einsum`, as if the package were installed."""
    settings: Any = torch.backends.opt_einsum
    monkeypatch.setattr(settings.m, "is_available", lambda: True)
    monkeypatch.setattr(settings.m, "get_opt_einsum", lambda: LeastWork)
    monkeypatch.setattr(settings.m, "enabled", True)
    found: SimpleNamespace = settings
    return found


def test_einsum_contracts_in_one_order(orders_by_size: SimpleNamespace) -> None:
    def contract(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bk,nk,nm->bm", x, WEIGHT, SECOND)

    assert rows_that_differ(contract) > 0
    with batch_invariant("matmul"):
        assert rows_that_differ(contract) == 0
    assert orders_by_size.enabled


VALUES: dict[str, tuple[Callable[..., torch.Tensor], Sequence[tuple[int, ...]]]] = {
    "multi_dot": (lambda *x: torch.linalg.multi_dot(x), [(2, 3), (3, 4), (4, 5)]),
    "multi_dot of vectors": (lambda *x: torch.linalg.multi_dot(x), [(3,), (3, 4), (4,)]),
    "tensordot": (lambda x, y: torch.tensordot(x, y, ([0, 2], [1, 0])), [(2, 1, 5), (5, 2, 1)]),
    "tensordot of nothing": (lambda x, y: torch.tensordot(x, y, 0), [(1,), (1, 1)]),
    "inner": (torch.inner, [(1, 1, 5), (1, 5)]),
    "inner of numbers": (torch.inner, [(), (5,)]),
    "cdist": (torch.cdist, [(2, 30, 4), (5, 4)]),
    "dot": (torch.dot, [(5,), (5,)]),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_and_gradients_are_those_of_stock(name: str) -> None:
    function, shapes = VALUES[name]
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    expected = function(*operands)
    gradients = torch.autograd.grad(expected.sin().sum(), operands)
    with batch_invariant():
        ours = function(*operands)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours.sin().sum(), operands), gradients)


def test_products_of_complex_vectors_are_those_of_stock() -> None:
    left = torch.complex(WEIGHT[0], WEIGHT[1])
    right = left.flip(0)
    expected = [torch.vdot(left, right), torch.vdot(left.conj(), right), left.dot(right.conj())]
    with batch_invariant():
        ours = [torch.vdot(left, right), torch.vdot(left.conj(), right), left.dot(right.conj())]
    torch.testing.assert_close(ours, expected)


REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "one matrix": lambda: torch.linalg.multi_dot([WEIGHT]),
    "three dims": lambda: torch.linalg.multi_dot([WEIGHT[None]] * 3),
    "sizes": lambda: torch.tensordot(ROWS[0], WEIGHT[0, :5], 1),
    "dims": lambda: torch.tensordot(ROWS[0], WEIGHT[0], ([0, 0], [0, 0])),
    "dot of sizes": lambda: torch.dot(ROWS[0], WEIGHT[0, :5]),
    "dot of dtypes": lambda: torch.dot(ROWS[0], WEIGHT[0].double()),
    "vdot of matrices": lambda: torch.vdot(ROWS, ROWS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operands_that_do_not_fit_are_refused_as_by_stock(name: str) -> None:
    with pytest.raises(RuntimeError) as stock:
        REFUSED[name]()
    with batch_invariant(), pytest.raises(RuntimeError) as ours:
        REFUSED[name]()
    assert str(ours.value) == str(stock.value)


def test_products_of_all_entries_of_large_tensors_take_no_more_memory() -> None:
    """They look for no classes, whose probes are 128 times as large as a vector."""
    values = torch.ones(1 << 17)
    with batch_invariant("matmul"):
        before = len(CLASSES._classes)
        assert values.dot(values) == torch.vdot(values, values) == len(values)
        assert torch.tensordot(values.view(2, -1), values.view(2, -1), 2) == len(values)
        assert len(CLASSES._classes) == before


def test_the_stock_ops_come_back() -> None:
    before = torch.linalg.multi_dot([ROWS[:2], WEIGHT.t(), SECOND])
    with batch_invariant("matmul"):
        inside = torch.linalg.multi_dot([ROWS[:2], WEIGHT.t(), SECOND], out=torch.empty(0))
        torch.testing.assert_close(inside, before)
    assert torch.equal(torch.linalg.multi_dot([ROWS[:2], WEIGHT.t(), SECOND]), before)
