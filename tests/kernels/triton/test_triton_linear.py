"""Triton's linear layers: the shortcut around PyTorch's dispatcher gives what the op gives."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from under_test import linear, matmul, random


@pytest.mark.parametrize("shape", [(5, 48), (2, 5, 48), (2, 3, 5, 48)])
def test_the_linear_shortcut_is_the_op(shape: tuple[int, ...]) -> None:
    x, weight, bias = random(1, *shape), random(2, 24, 48), random(3, 24)
    with torch.inference_mode():
        short = linear.linear(x, weight, bias)
    rows = matmul.addmm(bias, x.reshape(-1, 48), weight.t())
    assert torch.equal(short.view(-1, 24), rows)


@pytest.mark.parametrize("bias", [True, False])
def test_a_kept_call_serves_other_tensors_of_the_same_shape(bias: bool) -> None:
    """A second layer, and a second input, at other addresses."""
    for seed in range(3):
        x, weight = random(seed, 2, 3, 48), random(seed + 10, 24, 48)
        added = random(seed + 20, 24) if bias else None
        with torch.inference_mode():
            short = linear.linear(x, weight, added)
        torch.testing.assert_close(short, F.linear(x, weight, added), rtol=1e-5, atol=1e-5)


def test_inputs_that_lie_differently_in_memory_are_right() -> None:
    weight, whole = random(1, 24, 48), random(2, 4, 6, 96)
    with torch.inference_mode():
        for x in (whole[:, -1:, :48], whole[..., ::2], whole[:, :, 48:].transpose(0, 1)):
            short = linear.linear(x, weight)
            assert torch.equal(short, linear.linear(x.contiguous(), weight))


def test_a_biased_layer_takes_a_slice_as_its_copy_where_gradients_are_recorded() -> None:
    hidden, weight, bias = random(1, 5, 4, 64), random(2, 48, 64), random(3, 48)
    part = hidden.bfloat16()[:, -1:]
    operands = weight.bfloat16(), bias.bfloat16()
    with torch.enable_grad():
        assert torch.equal(
            linear.linear(part, *operands), linear.linear(part.contiguous(), *operands)
        )


class Watch(TorchDispatchMode):
    """Keeps the names of the ops that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_it_steps_aside_in_a_dispatch_mode() -> None:
    with torch.inference_mode(), Watch() as watch:
        linear.linear(random(1, 3, 16), random(2, 8, 16))
    assert any("mm" in name or "linear" in name for name in watch.seen)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_it_steps_aside_under_transforms() -> None:
    """Their tensors have no address: the shortcut would fail, or lose the tangent."""
    x, weight = random(1, 5, 16), random(2, 8, 16)
    stock = F.linear(x, weight)
    with torch.no_grad():
        mapped = torch.vmap(lambda row: linear.linear(row, weight))(x[:, None])[:, 0]
        torch.testing.assert_close(mapped, stock)
        _, tangent = torch.func.jvp(lambda x: linear.linear(x, weight), (x,), (x,))
        torch.testing.assert_close(tangent, stock)
        with forward_ad.dual_level():
            dual = linear.linear(forward_ad.make_dual(x, x), weight)
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, stock)
