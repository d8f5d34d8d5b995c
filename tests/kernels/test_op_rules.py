"""Which calls count as invariant, and that they are; which do not, and that they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rounding import rounds_alike
from torch import nn
from torch.nn import functional as F

from detcheck.kernels import overrides
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.op_rules import EVEN, EVEN_POWERS, OpRules

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
    "acosh": lambda x: (1 + x.abs()).acosh(),
    **{
        name: lambda x, name=name: getattr(torch, name)(x.abs() + 0.1)
        for name in ("sqrt", "log", "log1p", "log2", "log10", "lgamma")
    },
    **{f"pow {power}": lambda x, power=power: (x.abs() + 0.1).pow(power) for power in EVEN_POWERS},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ALIKE)
def test_ops_that_pass_as_even_are(name: str, dtype: torch.dtype) -> None:
    assert name.startswith("pow") or name in EVEN
    x = (torch.randn(4099, generator=torch.Generator().manual_seed(8)) * 3).to(dtype)
    with batch_invariant():
        assert rounds_alike(ALIKE[name], x)


def spread(x: torch.Tensor) -> torch.Tensor:
    """Values between 0 and 1, so that every op below is defined."""
    return x.sigmoid()


COVERED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", COVERED)
def test_ops_with_kernels_of_our_own_are_even(name: str, dtype: torch.dtype) -> None:
    x = (torch.randn(4099, generator=torch.Generator().manual_seed(8)) * 3).to(dtype)
    with batch_invariant():
        assert rounds_alike(COVERED[name], x)


@pytest.mark.parametrize("name", ["exp2", "cosh", "sinh"])
def test_the_same_check_catches_the_stock_op(name: str) -> None:
    x = torch.randn(4099, generator=torch.Generator().manual_seed(8)) * 3
    assert not rounds_alike(COVERED[name], x)


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
