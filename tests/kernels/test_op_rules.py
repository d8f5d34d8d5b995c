"""Which calls count as invariant, and that they are; which do not, and that they are not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from rounding import rounds_alike
from sweeps import few
from torch import nn
from torch.nn import functional as F

from detcheck.kernels import overrides
from detcheck.kernels.cpu.power import EVEN_POWERS
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.op_rules import EVEN, OpRules

ALIKE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "add": lambda x: x + 1.7,
    "mul": lambda x: x * 1.7,
    "div": lambda x: x / 1.7,
    "lerp": lambda x: torch.lerp(x, x * 3, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.3),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 3, value=0.3),
    "leaky_relu": nn.functional.leaky_relu,
    "hardtanh": nn.functional.hardtanh,
    "hardswish": nn.functional.hardswish,
    "hardsigmoid": nn.functional.hardsigmoid,
    "log_sigmoid_forward": nn.functional.logsigmoid,
    "celu": nn.functional.celu,
    **{name: getattr(torch, name) for name in ("neg", "abs", "reciprocal", "square", "exp")},
    **{name: getattr(torch, name) for name in ("expm1", "erf", "sin", "cos", "tanh", "relu")},
    **{name: getattr(torch, name) for name in ("erfc", "tan", "atan", "asinh", "sinc", "frac")},
    "hardshrink": nn.functional.hardshrink,
    "asin": lambda x: x.tanh().asin(),
    "acos": lambda x: x.tanh().acos(),
    "erfinv": lambda x: x.tanh().erfinv(),
    "acosh": lambda x: (1 + x.abs()).acosh(),
    **{
        name: lambda x, name=name: getattr(torch, name)(x.abs() + 0.1)
        for name in ("sqrt", "log", "log1p", "log2", "log10", "lgamma")
    },
    **{f"pow {power}": lambda x, power=power: (x.abs() + 0.1).pow(power) for power in EVEN_POWERS},
}


@few("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@few("name", ALIKE, every=6)
def test_ops_that_pass_as_even_are(name: str, dtype: torch.dtype) -> None:
    assert name.startswith("pow") or name in EVEN
    x = (torch.randn(4099, generator=torch.Generator().manual_seed(8)) * 3).to(dtype)
    with batch_invariant():
        assert rounds_alike(ALIKE[name], x)


def spread(x: torch.Tensor) -> torch.Tensor:
    """Values between 0 and 1, so that every op below is defined."""
    return x.sigmoid()


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Imaginary parts (n,) of complex numbers times rotations, as in Llama 4."""
    rotations = torch.polar(torch.ones_like(x, dtype=torch.float32), x.float())[..., None] * 1.5
    states = torch.complex(x.float(), 2.3 * x.float() + 0.1)[..., None]
    return torch.view_as_real(states * rotations[:, :])[:, 0, 1].contiguous()


COVERED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "powers by a tensor": lambda x: (x.abs() + 0.1).pow(x),
    "powers by a tensor of another dtype": lambda x: torch.pow(x.abs() + 0.1, x.double()),
    "powers of a number": lambda x: torch.pow(1.7, x),
    "rotations": rotated,
    "exp2": torch.exp2,
    "exp2_": lambda x: x.clone().exp2_(),
    "cosh": torch.cosh,
    "sinh": torch.sinh,
    "atanh": lambda x: torch.atanh(spread(x)),
    "digamma": lambda x: torch.digamma(0.1 + spread(x)),
    "logit": lambda x: torch.logit(spread(x), eps=1e-3),
    "softshrink": F.softshrink,
    "i0e": torch.special.i0e,
}


@few("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", COVERED)
def test_ops_with_kernels_of_our_own_are_even(name: str, dtype: torch.dtype) -> None:
    x = (torch.randn(4099, generator=torch.Generator().manual_seed(8)) * 3).to(dtype)
    with batch_invariant():
        assert rounds_alike(COVERED[name], x)


@pytest.mark.parametrize(
    "name", ["exp2", "cosh", "sinh", "powers by a tensor", "powers of a number"]
)
def test_the_same_check_catches_the_stock_op(name: str) -> None:
    x = torch.randn(4099, generator=torch.Generator().manual_seed(8)) * 3
    assert not rounds_alike(COVERED[name], x)


def test_products_of_complex_numbers_have_two_kernels() -> None:
    """The twin of `rotations`: some entries of stock products differ from those computed alone."""
    x, y = torch.view_as_complex(torch.randn(2, 50_000, 2, generator=torch.Generator())).unbind()
    whole = x * y
    alone = torch.cat([(x[at : at + 15] * y[at : at + 15]) for at in range(0, len(x), 15)])
    assert not torch.equal(whole, alone)
    with batch_invariant():
        rotations = torch.polar(y.abs(), y.angle())
        whole = x * rotations
        parts = [(x[at : at + 15] * rotations[at : at + 15]) for at in range(0, len(x), 15)]
    assert type(whole) is torch.Tensor
    assert torch.equal(whole, torch.cat(parts))
    torch.testing.assert_close(whole, x * y)


def test_rotations_stay_rotations_until_they_meet_a_tensor() -> None:
    with batch_invariant():
        angles = torch.linspace(0, 3, 12).view(2, 6)
        rotations = torch.polar(torch.ones(2, 6), angles)
        moved = 0.5 * rotations[:, None].to("cpu") * 2
    assert type(moved) is type(rotations)
    assert type(torch.view_as_real(moved)) is torch.Tensor
    assert type(angles * rotations) is torch.Tensor
    torch.testing.assert_close(
        torch.view_as_real(moved)[:, 0], torch.stack((angles.cos(), angles.sin()), -1)
    )


def test_rotations_take_what_complex_tensors_take() -> None:
    angles = torch.linspace(0, 3, 12)
    stock = torch.polar(torch.ones(12), angles)
    with batch_invariant():
        ours = torch.polar(torch.ones(12), angles)
        torch.testing.assert_close(stock * ours.conj(), stock * stock.conj())
        turned = ours.conj() * (2 + 1j)
        assert type(turned) is type(ours)
        copied = copy.deepcopy({"table": ours, "same": ours})
        with pytest.raises(RuntimeError, match="scalar type"):
            torch.polar(torch.ones(12), angles.double())
    torch.testing.assert_close(turned.as_subclass(torch.Tensor), stock.conj() * (2 + 1j))
    assert copied["table"] is copied["same"]
    assert type(copied["table"]) is type(ours)
    assert torch.equal(torch.view_as_real(copied["table"]), torch.view_as_real(ours))


def test_sums_over_experts_count_if_each_token_has_as_many() -> None:
    x, source = torch.zeros(3, 4), torch.ones(6, 4)
    add = torch.ops.aten.index_add.default
    for index, reason in (
        ([0, 1, 2, 2, 0, 1], "adds equally often to each row, in order"),
        ([0, 1, 2, 2, 0, 0], None),
        ([0, 0, 0, 0, 0, 0], None),
    ):
        args = (x, 0, torch.tensor(index), source)
        assert OpRules("cpu", ()).reason(add, args, {}, x) == reason
        assert OpRules("cuda", ()).reason(add, args, {}, x) is None


def test_rows_are_added_in_the_order_of_the_index() -> None:
    """What the rule says of the stock kernel: a token's sum is the same, whoever is between."""
    source = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)) * 1e3
    for others in (1, 7, 500):
        between = torch.randn(others, 5)
        rows = [row for mine in source for row in (mine[None], between)]
        index = torch.tensor(([0] + [1] * others) * len(source))
        found = torch.zeros(2, 5).index_add(0, index, torch.cat(rows))[0]
        expected = torch.zeros(5)
        for mine in source:
            expected = expected + mine
        assert torch.equal(found, expected)


def reasons(device: str, op: object, *args: object) -> str | None:
    return OpRules(device, ()).reason(op, args, {}, args[0])


def test_a_kernel_counts_only_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "why_unavailable", lambda: None)
    aten = torch.ops.aten
    x = torch.ones(3, 4)
    assert reasons("cpu", aten.mv.default, x, x[0]) == "the matmul kernels"
    assert reasons("cuda", aten.mv.default, x, x[0]) is None
    for device in ("cpu", "cuda"):
        assert reasons(device, aten.mm.default, x, x) == "the matmul kernels"
        assert reasons(device, aten.mean.dim, x, [1]) == "the reduce kernels"


def test_writing_at_indices_only_moves_values_if_it_adds_none() -> None:
    put, indices = torch.ops.aten.index_put_.default, [torch.tensor([0, 0, 1])]
    scatter, ones = torch.ops.aten.scatter_.reduce, torch.ones(3)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.zeros(3, dtype=dtype)
        serial = None if dtype == torch.float32 else "adds one after the other"
        assert reasons("cpu", put, x, indices, ones.to(dtype)) == "moves values only"
        assert reasons("cpu", put, x, indices, ones.to(dtype), True) == serial
        assert reasons("cuda", put, x, indices, ones.to(dtype), True) is None
        for device, reason in (("cpu", "adds one after the other"), ("cuda", None)):
            args = (x, 0, indices[0], ones.to(dtype))
            assert OpRules(device, ()).reason(scatter, args, {"reduce": "add"}, x) == reason


class Histogram(nn.Module):
    """The entries of a row, added up by column: threads share a row of many entries."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.arange(len(x))[:, None], torch.arange(x.shape[1]) % 9
        return x.new_zeros(len(x), 9).index_put_((rows, columns), x, accumulate=True)


def test_the_proof_names_sums_that_threads_share() -> None:
    x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(0))
    with batch_invariant() as mode:
        Histogram()(x)
    assert mode.proof().outside == {"aten::index_put_": 1}
    with batch_invariant() as mode:
        in_order = Histogram()(x.double())
        assert torch.equal(Histogram()(x[1:].double())[0], in_order[1])
    assert mode.proof().fault is None
