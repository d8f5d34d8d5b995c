"""A token's experts give it the same, bit for bit, whatever the other tokens choose."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from sweeps import few
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.integrations.moe import ExpertsInterface

from detcheck.kernels.experts import EXPERTS_OP
from detcheck.kernels.mode import batch_invariant


def block(num_experts: int, top_k: int, implementation: str = "grouped_mm") -> Any:
    """The experts of one layer, with their router."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=num_experts,
        num_experts_per_tok=top_k,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation(implementation)
    return model.model.layers[0].mlp


def tokens(count: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, count, 64, generator=generator).to(dtype)


def differing(experts: Any, x: torch.Tensor) -> int:
    """Tokens that get something else alone than among the others."""
    with torch.no_grad():
        together = experts(x)
        alone = [experts(x[:, at : at + 1]) for at in range(x.shape[1])]
    return sum(not torch.equal(one, together[:, [at]]) for at, one in enumerate(alone))


@few("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@few(("num_experts", "top_k"), [(8, 2), (4, 4), (1, 1), (32, 3)], every=3)
@few("count", [2, 19])
def test_a_token_does_not_depend_on_the_others(
    num_experts: int, top_k: int, count: int, implementation: str, dtype: torch.dtype
) -> None:
    experts = block(num_experts, top_k, implementation).to(dtype)
    with batch_invariant() as mode:
        assert differing(experts, tokens(count, dtype)) == 0
    assert mode.proof().overrides[EXPERTS_OP] == count + 1


def test_stock_experts_depend_on_them() -> None:
    """The twin."""
    assert differing(block(8, 2), tokens(19, torch.float32)) > 0


def test_ties_in_the_router_are_broken_alike() -> None:
    """All experts score the same: a token alone chooses those that it chooses in a batch."""
    experts = block(8, 2)
    with torch.no_grad():
        experts.gate.weight.zero_()
    with batch_invariant():
        assert differing(experts, tokens(19, torch.float32)) == 0


def test_a_tie_that_is_broken_by_place_would_be_seen() -> None:
    """The twin: experts that are chosen by a token's place in the batch."""
    experts = block(8, 2)

    def by_place(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = x.reshape(-1, 64)
        index = (torch.arange(len(rows))[:, None] + torch.arange(2)) % 8
        return rows @ experts.gate.weight.T, torch.full((len(rows), 2), 0.5), index

    experts.gate.forward = by_place
    with batch_invariant():
        assert differing(experts, tokens(19, torch.float32)) > 0


def doubled(module: Any, *args: Any) -> torch.Tensor:
    """An implementation that computes something else."""
    forward: Any = type(module).forward
    result: torch.Tensor = forward.__wrapped__(module, *args)
    return 2 * result


def test_an_implementation_of_the_user_is_not_replaced() -> None:
    """The twin is transformers' own, in whose place ours is used."""
    x = tokens(5, torch.float32)
    with torch.no_grad():
        expected = block(8, 2, "eager")(x)
    ExpertsInterface.register("doubled", doubled)
    try:
        with torch.no_grad(), batch_invariant() as mode:
            own = block(8, 2, "doubled")(x)
            assert mode.proof().overrides[EXPERTS_OP] == 0
            torch.testing.assert_close(own, 2 * expected)
            torch.testing.assert_close(block(8, 2, "batched_mm")(x), expected)
            assert mode.proof().overrides[EXPERTS_OP] == 1
    finally:
        ExpertsInterface._global_mapping.pop("doubled")


def fail_inside(modes: contextlib.ExitStack, before: dict[str, Any]) -> None:
    with modes:
        assert ExpertsInterface._global_mapping != before
        raise ZeroDivisionError


def test_stock_experts_are_back_after_an_exception() -> None:
    before = dict(ExpertsInterface._global_mapping)
    modes = contextlib.ExitStack()
    modes.enter_context(batch_invariant())
    modes.enter_context(batch_invariant("matmul"))
    with pytest.raises(ZeroDivisionError):
        fail_inside(modes, before)
    assert ExpertsInterface._global_mapping == before


def test_float64_takes_the_loop_of_the_class() -> None:
    """The grouped implementation serves the dtypes that grouped products have."""
    experts, x = block(8, 2).double(), tokens(5, torch.float64)
    with torch.no_grad(), batch_invariant() as mode:
        got = experts(x)
    assert mode.proof().overrides["aten::_grouped_mm"] == 0
    with torch.no_grad():
        torch.testing.assert_close(got, block(8, 2, "eager").double()(x))
