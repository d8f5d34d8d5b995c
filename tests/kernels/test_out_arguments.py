"""A row is the same in any batch and layout with `out=`, in place, and in less usual ops.

Each check has its twin on stock ops, which fail it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from sweeps import few
from torch import nn
from torch.nn import functional as F

from detcheck.kernels.mode import batch_invariant

Function = Callable[[torch.Tensor], torch.Tensor]

pytestmark = pytest.mark.usefixtures("two_threads")


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()


def into(function: Callable[..., torch.Tensor], *args: object) -> Function:
    """`function` (x, …) that writes into an empty tensor."""
    return lambda x: function(x, *args, out=torch.empty(0))


def as_images(x: torch.Tensor) -> torch.Tensor:
    return x[..., :25, None].expand(-1, -1, -1, 2) + x[..., 25:, None]


VECTOR = random(16)
OPS: dict[str, Function] = {
    "mean, out=": into(torch.mean, 1),
    "prod, out=": lambda x: torch.prod(1 + x / 1e3, -1, out=torch.empty(0)),
    "nansum, out=": into(torch.nansum, -1),
    "logsumexp, out=": into(torch.logsumexp, -1),
    "norm, out=": lambda x: torch.linalg.vector_norm(x, dim=-1, out=torch.empty(0)),
    "pairwise distance": lambda x: F.pairwise_distance(x, 2 * x.flip(-1)),
    "exp2, out=": into(torch.exp2),
    "sigmoid, out=": into(torch.sigmoid),
    "glu": F.glu,
    "atan2": lambda x: torch.atan2(x, x.flip(-1)),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(-1)),
    "igamma": lambda x: torch.igamma(x.abs() + 0.1, x.flip(-1).abs()),
    "power 0.3": lambda x: x.abs() ** 0.3,
    "power 4, method": lambda x: x.pow(4),
    "power 1.5, function": lambda x: torch.pow(x.abs(), 1.5),
    "power -1.5, in place": lambda x: x.abs().pow_(-1.5),
    "power 1.5, out=": lambda x: torch.pow(x.abs(), 1.5, out=torch.empty(0)),
    "power by a tensor, out=": lambda x: torch.pow(x.abs(), x, out=torch.empty(0)),
    "batch norm": lambda x: F.batch_norm(x, VECTOR, VECTOR.abs() + 0.1, VECTOR, VECTOR),
    "convolution": lambda x: F.conv2d(as_images(x), random(9, 16, 3, 1)),
    "inverse Fourier transform": lambda x: torch.fft.irfft(torch.fft.rfft(x[:, 0, :33])),
    "matrix exponential": lambda x: torch.matrix_exp(x[:, :5, :5] / 100),
}
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "batch innermost": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "channels last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "part of a larger tensor": lambda x: F.pad(x, (3, 2))[..., 3:-2],
}


def rows_that_differ(function: Function, x: torch.Tensor) -> int:
    """Rows of smaller batches, as views and by themselves, that are not those of the batch."""
    whole = function(x)
    differ = 0
    for size in (1, 2, 3, 5, 7, 8, 17, 33):
        for start in (0, len(x) - size):
            part = x[start : start + size]
            for each in (part, part.clone(memory_format=torch.contiguous_format)):
                same = function(each) == whole[start : start + size]
                differ += int((~same).reshape(size, -1).any(-1).sum())
    return differ


@few("name", OPS, every=5)
def test_rows_keep_their_bits_in_every_layout(name: str) -> None:
    stock = 0
    for lay_out in LAYOUTS.values():
        x = lay_out(random(65, 16, 50))
        stock += rows_that_differ(OPS[name], x)
        with batch_invariant():
            assert rows_that_differ(OPS[name], x) == 0
    assert stock > 0, "this check would pass without the mode"


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("name", OPS)
def test_values_are_those_of_stock(name: str) -> None:
    x = random(5, 16, 50)
    stock = OPS[name](x)
    with batch_invariant():
        ours = OPS[name](x)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    assert ours.stride() == stock.stride()


def test_out_tensors_of_other_dtypes_are_as_in_stock() -> None:
    x = random(5, 16, 50)
    cases: tuple[Function, ...] = (
        lambda x: torch.nansum(x, -1, out=torch.empty(0, dtype=torch.float64)),
        lambda x: torch.exp2(x, out=torch.empty(0, dtype=torch.float64)),
    )
    for function in cases:
        stock = function(x)
        with batch_invariant():
            torch.testing.assert_close(function(x), stock)


def test_powers_have_the_gradients_of_stock_and_their_names_are_given_back() -> None:
    names = (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__)
    grads = []
    for on in (False, True):
        x = random(7, 9).abs().requires_grad_()
        with batch_invariant() if on else torch.enable_grad():
            grads.append(torch.autograd.grad((x**1.7).sum(), x))
    torch.testing.assert_close(*grads)
    assert names == (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__)


class Scripted(nn.Module):
    """A module of ops whose Python names a mode replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.pow(self.layer(x).abs(), 3.5) + F.linear(x, self.layer.weight)
        q = y.view(-1, 2, 4, 4)
        return F.scaled_dot_product_attention(q, q, q)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules_run_and_can_be_made_inside_a_mode() -> None:
    module, x = Scripted().eval(), torch.randn(6, 32)
    with torch.no_grad():
        expected = module(x)
        before = torch.jit.script(module)
        with batch_invariant():
            torch.testing.assert_close(nn.Sequential(before)(x), expected)
            torch.testing.assert_close(torch.jit.script(module)(x), expected)


def test_torchscript_forgets_the_functions_of_a_mode_that_ended() -> None:
    table = torch.jit._builtins._get_builtin_table()
    gc.collect()
    before = dict(table)
    with batch_invariant():
        assert table != before
    gc.collect()
    assert table == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_weight_may_be_new_to_the_mode_inside_a_transform() -> None:
    x = torch.randn(5, 64)
    weight = nn.Parameter(torch.randn(32, 64))
    with torch.no_grad(), batch_invariant():
        tangent = torch.func.jvp(lambda rows: F.linear(rows, weight), (x,), (x,))[1]
        alone = torch.func.vmap(torch.func.grad(lambda row: F.linear(row, weight).sum()))(x)
    torch.testing.assert_close(tangent, x @ weight.t())
    torch.testing.assert_close(alone, weight.sum(0).expand(5, 64))
