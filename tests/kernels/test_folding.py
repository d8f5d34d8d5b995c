"""A request's product by one matrix has the same bits in any batch, however the batch is cut.

The same check fails for the stock op, which takes another kernel for batches that do not lie in
memory as rows of one matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from products import cancelling
from sweeps import few
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.usefixtures("two_threads")

ROWS, WEIGHT = cancelling(6 * 7, 577, 96, torch.float32)
HIDDEN = ROWS.view(6, 7, 577)
"""Six requests of seven tokens."""
VECTOR = WEIGHT[0]
Function = Callable[[torch.Tensor], torch.Tensor]
CUTS: dict[str, Function] = {
    "first tokens": lambda x: x[:, :3],
    "last token": lambda x: x[:, -1:],
    "tokens first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "by head": lambda x: x[:, None, 1:4].expand(-1, 2, -1, -1),
}
PRODUCTS: dict[str, Function] = {
    "matmul": lambda x: x @ WEIGHT.t(),
    "by a vector": lambda x: x @ VECTOR,
    "of a vector": lambda x: VECTOR @ x.mT,
    "linear": lambda x: F.linear(x, WEIGHT),
    "out=": lambda x: torch.matmul(x, WEIGHT.t(), out=x.new_empty(*x.shape[:-1], 96)),
    "tokens first": lambda x: (x.transpose(0, 1) @ WEIGHT.t()).transpose(0, 1),
}


def requests_that_differ(cut: Function, product: Function) -> int:
    """Requests whose product has other bits in a batch, at either end of it, than alone."""
    parts = [cut(request) for request in HIDDEN.split(1)]
    differ = 0
    for at, part in enumerate(parts):
        alone = product(part.clone(memory_format=torch.contiguous_format))[0]
        batches = [product(part), product(cut(HIDDEN[at:])), product(cut(HIDDEN[: at + 1]))]
        ours = (batches[0][0], batches[1][0], batches[2][-1])
        differ += sum(not torch.equal(alone, one) for one in ours)
    return differ


@few("name", PRODUCTS)
def test_requests_do_not_depend_on_the_batch(name: str) -> None:
    with torch.no_grad():
        if name != "of a vector":  # its stock kernels agree here
            assert requests_that_differ(CUTS["first tokens"], PRODUCTS[name]) > 0
        with batch_invariant("matmul"):
            for cut in CUTS.values():
                assert requests_that_differ(cut, PRODUCTS[name]) == 0


HEADS = nn.Parameter(WEIGHT.view(3, 32, 577), requires_grad=False)
"""A matrix for each of three heads."""
BY_HEAD: dict[str, Function] = {
    "heads on the left": lambda x: HEADS @ x,
    "heads on the right": lambda x: (x.mT @ HEADS.mT).mT,
    "one head": lambda x: HEADS[:1] @ x,
    "a head for each": lambda x: HEADS[0].expand(len(x), 3, -1, -1) @ x,
    "out=": lambda x: torch.matmul(HEADS, x, out=x.new_empty(len(x), 3, 32, x.shape[3])),
}


@few("name", BY_HEAD)
def test_requests_by_a_matrix_for_each_head_do_not_depend_on_the_batch(name: str) -> None:
    product, x = BY_HEAD[name], HIDDEN[:, :6].mT.reshape(6, 577, 3, 2).transpose(1, 2)

    def differ() -> int:
        whole = product(x)
        parts = [(start, product(x[start : start + size])) for size in (1, 2) for start in (0, 4)]
        return sum(not torch.equal(part, whole[at : at + len(part)]) for at, part in parts)

    stock = product(x)
    assert differ() > 0
    with batch_invariant("matmul"):
        assert differ() == 0
        torch.testing.assert_close(product(x), stock, rtol=1e-3, atol=1e-3)


SHAPES = [
    *(((5,), (5,)), ((4, 5), (5,)), ((5,), (5, 3)), ((2, 4, 5), (5,)), ((5,), (2, 5, 3))),
    *(((2, 4, 5), (5, 3)), ((4, 5), (2, 5, 3)), ((6, 2, 4, 5), (2, 5, 3)), ((0, 4, 5), (5, 3))),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_stock(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    )
    operands = left.mT.contiguous().mT if left.dim() > 1 else left, right

    def product_and_gradients() -> list[torch.Tensor]:
        product = torch.matmul(*operands)
        return [product, *torch.autograd.grad(product.square().sum(), (left, right))]

    stock = product_and_gradients()
    with batch_invariant("matmul"):
        ours = product_and_gradients()
        with torch.no_grad():
            assert torch.equal(torch.matmul(*operands, out=torch.empty_like(ours[0])), ours[0])
    for one, expected in zip(ours, stock, strict=True):
        torch.testing.assert_close(one, expected)


def test_stock_is_restored() -> None:
    before = torch.matmul(HIDDEN[:, :3], WEIGHT.t())
    with batch_invariant("matmul"):
        inside = torch.matmul(HIDDEN[:, :3], WEIGHT.t())
    assert not torch.equal(inside, before)
    assert torch.equal(torch.matmul(HIDDEN[:, :3], WEIGHT.t()), before)


def test_what_stock_refuses_is_refused() -> None:
    for other in (torch.tensor(1.0), WEIGHT.t().double()):
        with pytest.raises(RuntimeError) as stock:
            HIDDEN @ other
        with batch_invariant("matmul"), pytest.raises(RuntimeError) as ours:
            HIDDEN[:, :3] @ other
        assert str(ours.value) == str(stock.value)
    with batch_invariant("matmul"), pytest.raises(RuntimeError, match="cannot be multiplied"):
        HIDDEN[:, :3] @ WEIGHT


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own
def test_transforms_and_watchers_see_it() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    part = HIDDEN[:, :3]
    with batch_invariant("matmul"):
        expected = part @ WEIGHT.t()
        each = torch.func.vmap(lambda x: x @ WEIGHT.t())(part)
        _, tangent = torch.func.jvp(lambda x: x @ WEIGHT.t(), (part,), (part,))
        with Names():
            part @ WEIGHT.t()
        with torch.autocast("cpu", torch.bfloat16):
            assert (part @ WEIGHT.t()).dtype == torch.bfloat16
        assert (part.to("meta") @ WEIGHT.t().to("meta")).shape == (6, 3, 96)
    assert "aten::mm" in names
    assert "aten::bmm" not in names
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(tangent, expected)
