"""Coverage of elementwise ops: those that round by place are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from decoders import TAKEN
from rounding import rounds_alike
from torch import nn

from detcheck.kernels.coverage import (
    uncovered,
)
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.op_watch import Uncovered


class Activated(nn.Module):
    """A linear layer and an activation."""

    def __init__(self, layer: nn.Linear, activate: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.layer, self.activate = layer, activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activate(self.layer(x))


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mul": lambda x: (torch.complex(x, x.sin()) * torch.complex(x.cos(), x)).real.clone(
        memory_format=torch.contiguous_format
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_rounds_by_place_is_refused(name: str) -> None:
    activate = ACTIVATIONS[name]
    x = torch.randn(4099, generator=torch.Generator().manual_seed(1)) * 3
    with batch_invariant():
        assert not rounds_alike(activate, x)
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].mlp.down_proj = Activated(model.model.layers[1].mlp.down_proj, activate)
    assert uncovered(model) == (Uncovered(f"aten::{name}", "model.layers.1.mlp.down_proj"),)


def test_a_sum_with_a_factor_is_even_in_float32_only() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return torch.add(x, x * 1.7, alpha=0.3)

    x = torch.randn(4099)
    assert rounds_alike(scaled, x)
    assert not rounds_alike(scaled, x.bfloat16())
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].mlp.down_proj = Activated(model.model.layers[1].mlp.down_proj, scaled)
    assert uncovered(model) == ()
    assert uncovered(model.bfloat16()) == (Uncovered("aten::add", "model.layers.1.mlp.down_proj"),)


def test_products_of_complex_entries_are_refused() -> None:
    """As rotary embeddings of Llama 4 have them: their vector and scalar kernels differ."""

    def turn(x: torch.Tensor) -> torch.Tensor:
        turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(turned * turned).flatten(-2)

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 4099, dtype=torch.complex64, generator=generator)
    whole = left * right
    assert not all(
        torch.equal(left[at : at + 7] * right[at : at + 7], whole[at : at + 7]) for at in range(99)
    )
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].mlp.down_proj = Activated(model.model.layers[1].mlp.down_proj, turn)
    assert Uncovered("aten::mul", "model.layers.1.mlp.down_proj") in uncovered(model)
