"""The gradient of a row by its input has the same bits in any batch.

Each check has its twin on stock ops, which fail it. Gradients by weights are sums over the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.usefixtures("two_threads")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


Function = Callable[[torch.Tensor], torch.Tensor]
FUNCTIONS: dict[str, Function] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "mish": F.mish,
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "convolution": lambda x: F.conv1d(x, random(32, 24, 5), random(32), padding=2),
    "transposed convolution": lambda x: F.conv_transpose1d(x, random(24, 8, 5), stride=2),
}
ROWS = random(17, 24, 33) * 3


def gradient(function: Function, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    result = function(x)
    return torch.autograd.grad(result, x, result.detach().cos())[0]


def rows_that_differ(function: Function) -> int:
    """Rows of smaller batches and of a transpose whose gradients are not those of the batch."""
    whole = gradient(function, ROWS)
    layouts = [(0, ROWS.transpose(0, 2).contiguous().transpose(0, 2))]
    batches = [(start, ROWS[start : start + size]) for size in (1, 2, 5) for start in (0, 11)]
    return sum(
        int((gradient(function, x) != whole[start : start + len(x)]).flatten(1).any(1).sum())
        for start, x in batches + layouts
    )


@few("name", FUNCTIONS)
def test_gradients_of_rows_do_not_depend_on_the_batch(name: str) -> None:
    assert rows_that_differ(FUNCTIONS[name]) > 0
    with batch_invariant():
        assert rows_that_differ(FUNCTIONS[name]) == 0


@few("name", FUNCTIONS, every=8)
def test_first_and_second_gradients_are_those_of_stock(name: str) -> None:
    def gradients() -> list[torch.Tensor]:
        x = ROWS[:2].double().requires_grad_()
        weights = [random(6, 24, 5).double().requires_grad_(), random(6).double().requires_grad_()]
        if "convolution" in name:
            operands = [x, *weights]
            result = (
                F.conv1d(x, *weights)
                if name == "convolution"
                else F.conv_transpose1d(x, weights[0].transpose(0, 1), weights[1], 2)
            )
        else:
            operands, result = [x], FUNCTIONS[name](x)
        first = torch.autograd.grad(result.sin().sum(), operands, create_graph=True)
        second = torch.autograd.grad(sum(each.sin().sum() for each in first), operands)
        return [*first, *second]

    expected = gradients()
    with batch_invariant():
        torch.testing.assert_close(gradients(), expected)


def test_a_frozen_input_gets_no_gradient() -> None:
    rows, weight, bias = ROWS.double(), random(6, 24, 5).double(), random(6).double()
    parameters = weight.requires_grad_(), bias.requires_grad_()

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(F.conv1d(rows, weight, bias).square().sum(), parameters)

    expected = gradients()
    with batch_invariant():
        torch.testing.assert_close(gradients(), expected)
        nothing = gradient(lambda x: F.conv1d(x, weight, bias), rows[:0])
    assert nothing.shape == ROWS[:0].shape
