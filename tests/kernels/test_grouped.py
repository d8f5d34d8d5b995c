"""Grouped products on the CPU: each token by its expert, whatever the others chose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from detcheck.kernels.cpu.grouped import grouped_mm
from detcheck.kernels.mode import batch_invariant


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ends(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def products(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """The twin in float64, one token at a time."""
    experts = torch.bucketize(torch.arange(len(x)), offs.long(), right=True)
    rows = zip(x.double(), experts.tolist(), strict=True)
    return torch.stack([row @ weight[expert].double() for row, expert in rows])


def differing(multiply: Any, dtype: torch.dtype) -> int:
    """Tokens of an expert that get other bits alone than among 40 tokens of four experts."""
    x, weight = random(0, 40, 64, dtype=dtype), random(1, 4, 96, 64, dtype=dtype)
    cuts = ends(3, 3, 34, 40)
    together = multiply(x, weight.mT, offs=cuts)
    count = 0
    for token in range(40):
        before = (cuts <= token).sum()
        alone = ends(*(int(expert >= before) for expert in range(4)))
        count += not torch.equal(multiply(x[[token]], weight.mT, offs=alone)[0], together[token])
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_token_has_the_same_bits_alone(dtype: torch.dtype) -> None:
    assert differing(grouped_mm, dtype) == 0


def test_stock_tokens_depend_on_the_others() -> None:
    """The twin."""
    assert differing(F.grouped_mm, torch.float32) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_each_token_is_multiplied_by_its_expert(dtype: torch.dtype, transposed: bool) -> None:
    x, weight = random(0, 9, 24, dtype=dtype), random(1, 3, 24, 16, dtype=dtype)
    weight = weight.mT.contiguous().mT if transposed else weight
    out = grouped_mm(x, weight, ends(4, 4, 9))
    expected = products(x, weight, ends(4, 4, 9))
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    assert out.dtype == dtype


def test_tokens_after_the_last_expert_get_zeros() -> None:
    out = grouped_mm(random(0, 5, 8), random(1, 2, 8, 3), ends(1, 3))
    assert out[3:].eq(0).all()
    assert out[:3].ne(0).all()


def test_no_tokens_at_all() -> None:
    assert grouped_mm(random(0, 0, 8), random(1, 2, 8, 3), ends(0, 0)).shape == (0, 3)


def test_without_cuts_it_is_a_batch_of_products() -> None:
    left, right = random(0, 2, 5, 8), random(1, 2, 8, 3)
    torch.testing.assert_close(grouped_mm(left, right), left @ right)


def test_a_bias_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="with a bias"):
        grouped_mm(random(0, 2, 8), random(1, 1, 8, 3), ends(2), bias=random(2, 1, 3))


def test_the_mode_overrides_it_with_its_gradients() -> None:
    x, weight = random(0, 9, 24), random(1, 3, 8, 24)
    cuts = ends(2, 2, 9)

    def gradients(function: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        return torch.autograd.grad(function(*leaves), leaves)

    with batch_invariant() as mode:
        got = gradients(lambda x, w: F.grouped_mm(x, w.mT, offs=cuts).square().sum(), x, weight)
    assert mode.proof().overrides["aten::_grouped_mm"] >= 2
    expected = gradients(
        lambda x, w: products(x, w.mT, cuts).square().sum(), x.double(), weight.double()
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-4)
