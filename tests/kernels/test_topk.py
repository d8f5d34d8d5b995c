"""The largest entries of rows of keys: among equal ones the first, however many are masked."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.usefixtures("two_threads")


def scores(*shape: int) -> torch.Tensor:
    """Few different values: most entries have an equal."""
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(7)).float()


def choices_that_padding_moves(x: torch.Tensor, k: int, *, largest: bool = True) -> int:
    """Numbers of masked keys that change which k entries of (batch, queries, keys) are chosen."""
    hidden = -torch.inf if largest else torch.inf
    alone = x.topk(k, -1, largest).indices
    padded = [
        (before, F.pad(x, (before, after), value=hidden).topk(k, -1, largest).indices - before)
        for before, after in ((1, 0), (16, 0), (61, 0), (0, 5), (0, 900), (33, 7))
    ]
    return sum(not torch.equal(found.sort().values, alone.sort().values) for _, found in padded)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_masked_keys_do_not_change_the_choice(k: int, largest: bool) -> None:
    with batch_invariant("reduce"):
        assert choices_that_padding_moves(scores(2, 5, 45), k, largest=largest) == 0


def test_masked_keys_change_the_choice_of_the_stock_op() -> None:
    assert choices_that_padding_moves(scores(2, 5, 45), 4) > 0


def test_the_first_of_equal_entries_are_taken() -> None:
    with batch_invariant("reduce"):
        values, indices = torch.tensor([[[1.0, 3.0, 2.0, 3.0, 3.0, 0.0]]]).topk(2)
    assert values.tolist() == [[[3.0, 3.0]]]
    assert indices.tolist() == [[[1, 3]]]


def test_values_and_shapes_are_those_of_stock() -> None:
    x = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(7))
    for k, dim in ((0, -1), (3, 1), (6, -2), (7, 2), (1, 0)):
        expected = x.topk(k, dim)
        with batch_invariant("reduce"):
            found = x.topk(k, dim)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.indices, expected.indices)
    with batch_invariant("reduce"):
        assert torch.equal(x[0].topk(2).values, x[:1].topk(2).values[0])
        for k, dim in ((8, -1), (1, 3)):
            with pytest.raises((RuntimeError, IndexError)):
                x.topk(k, dim)
