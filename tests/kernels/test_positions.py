"""Positions of models that do not count from 0: with them, padding changes no bit."""

from __future__ import annotations

import pytest
import torch
from sweeps import few

from detcheck.kernels.coverage import coverage
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.positions import first_position, positions_of, takes_positions
from detcheck.models.tiny import config_of, shrunk, tiny_model


@few(("name", "first"), [("llama", 0), ("bart", 0), ("roberta", 1)])
def test_the_first_position_is_the_model_s_own(name: str, first: int) -> None:
    model = tiny_model(shrunk(config_of(name)))
    assert first_position(model) == first
    assert takes_positions(model) == (name != "bart")


def test_positions_start_behind_the_padding_token() -> None:
    config = shrunk(config_of("roberta"))
    config.pad_token_id = 7
    assert first_position(tiny_model(config)) == 8


def test_positions_count_from_the_first_token_that_is_no_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions_of(mask, 2).tolist() == [[2, 2, 2, 3], [2, 3, 4, 5]]


@pytest.mark.parametrize("first", [0, 1])
def test_a_padded_row_with_its_own_positions_equals_the_row_alone(first: int) -> None:
    """Positions from 0 are those of another request: the twin that differs."""
    model = tiny_model(shrunk(config_of("roberta")))
    assert not coverage(model).padding_matters
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad(), batch_invariant():
        alone = model(input_ids=ids[:1, 2:]).logits[0]
        positions = positions_of(mask, first)
        padded = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0, 2:]
    assert torch.equal(alone, padded) == (first == 1)
