"""Rounded log-probabilities are found, with their bits; computed ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detcheck.analysis.mismatch.rounding import rounding_of


def logprobs() -> np.ndarray:
    logits = torch.randn(200, 500, generator=torch.Generator().manual_seed(0)) * 3
    return logits.log_softmax(-1).max(-1).values.numpy()


def test_computed_values_are_not_rounded() -> None:
    assert rounding_of([logprobs()]) is None


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)], ids=["bfloat16", "float16"]
)
def test_a_number_type_is_named(dtype: torch.dtype, bits: int) -> None:
    rounded = torch.from_numpy(logprobs()).to(dtype).float().numpy()
    found = rounding_of([rounded[:50], rounded[50:]])
    assert found is not None
    assert (found.bits, found.decimals) == (bits, None)
    assert f"rounded to {bits} bits (" in found.sentence


@pytest.mark.parametrize("decimals", [2, 3, 4])
def test_decimals_are_named(decimals: int) -> None:
    found = rounding_of([np.round(logprobs().astype(np.float64), decimals)])
    assert found is not None
    assert found.decimals == decimals
    assert f"{decimals} decimals, about {found.bits} bits" in found.sentence


def test_one_exact_value_among_rounded_ones_is_no_rounding() -> None:
    rounded = torch.from_numpy(logprobs()).bfloat16().float().numpy()
    rounded[7] = logprobs()[7]
    assert rounding_of([rounded]) is None


def test_too_few_values_say_nothing() -> None:
    assert rounding_of([np.array([-0.5, -0.25, 0.0])]) is None


@pytest.mark.parametrize("decimals", [2, 4])
def test_the_unit_bounds_what_rounding_changed(decimals: int) -> None:
    exact = -np.random.default_rng(1).exponential(2.0, 200)
    for rounded in (exact.round(decimals), torch.tensor(exact).bfloat16().double().numpy()):
        found = rounding_of([rounded])
        assert found is not None
        assert np.abs(rounded - exact).max() <= found.unit <= 0.125
