"""A mask that was changed is read again, wherever it was made and however it was changed."""

from __future__ import annotations

import contextlib

import pytest
import torch

from detcheck.kernels import visible_keys
from detcheck.kernels.visible_keys import read_mask, read_mask_once

CONTEXTS = {"plain": contextlib.nullcontext, "inference": torch.inference_mode}


def causal() -> torch.Tensor:
    """(1, 1, 6, 6) of booleans without padding."""
    return torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()


def pad(mask: torch.Tensor) -> None:
    """Hide the first two keys, in place."""
    mask[..., :2] = False


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_mask_that_is_changed_in_place_is_read_again(name: str) -> None:
    with CONTEXTS[name]():
        mask = causal()
        assert mask.is_inference() is (name == "inference")
        assert read_mask_once(mask, 1, 6).starts.tolist() == [0]
        pad(mask)
        assert read_mask_once(mask, 1, 6).starts.tolist() == [2]


def test_a_mask_that_is_changed_past_its_version_counter_is_read_again() -> None:
    mask = causal()
    version = mask._version
    pad(mask.data)
    assert read_mask_once(mask, 1, 6).starts.tolist() == [2]
    mask.numpy()[..., :3] = False
    assert mask._version == version
    assert read_mask_once(mask, 1, 6).starts.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16])
def test_one_changed_entry_of_a_large_mask_is_seen(dtype: torch.dtype) -> None:
    mask = torch.ones(2, 1, 128, 128, dtype=torch.bool).tril()
    if dtype != torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    assert read_mask_once(mask, 2, 128).starts.tolist() == [0, 0]
    assert read_mask_once(mask[1:], 1, 128).starts.tolist() == [0]
    mask.data[1, ..., 0] = mask[0, 0, 0, 1]  # hidden
    assert read_mask_once(mask, 2, 128).starts.tolist() == [0, 1]


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_mask_that_is_unchanged_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def counting(*args: object) -> object:
        reads.append(1)
        return read_mask(*args)

    monkeypatch.setattr(visible_keys, "read_mask", counting)
    with CONTEXTS[name]():
        masks = [causal(), causal()]
        pad(masks[1])
        for _ in range(3):
            starts = [read_mask_once(mask, 1, 6).starts.tolist() for mask in masks]
            assert starts == [[0], [2]]
    assert len(reads) == 2


def test_a_mask_of_another_batch_or_length_is_read_again() -> None:
    mask = causal()
    assert len(read_mask_once(mask, 1, 6).starts) == 1
    assert len(read_mask_once(mask, 3, 6).starts) == 3
