"""Triton's grouped products: right, and a token's bits do not depend on the other tokens."""

from __future__ import annotations

import itertools
from itertools import pairwise

import pytest
import torch
from under_test import (
    DEVICE,
    DOT_DTYPES,
    INTERPRETED,
    configs,
    grouped,
    in_segments,
    random,
    reduce,
)


def reference(x: torch.Tensor, weight: torch.Tensor, ends: list[int]) -> torch.Tensor:
    parts = [x[a:b].double() @ weight[e].double() for e, (a, b) in enumerate(pairwise([0, *ends]))]
    return torch.cat(parts).to(x.dtype)


def offsets(*ends: int) -> torch.Tensor:
    return torch.tensor(ends, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("ends", [(5, 5, 40, 41), (0, 0, 0, 3), (16, 32, 48, 64), (0, 33, 33, 33)])
def test_products_by_expert_are_right(dtype: torch.dtype, ends: tuple[int, ...]) -> None:
    """Experts without tokens, of one token, of a whole tile and of more."""
    x, weight = random(1, ends[-1], 70, dtype=dtype), random(2, 4, 50, 70, dtype=dtype)
    out = grouped.grouped_mm(x, weight.transpose(1, 2), offsets(*ends))
    expected = reference(x, weight.transpose(1, 2), list(ends))
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=4e-2)
    plain = grouped.grouped_mm(x, weight.transpose(1, 2).contiguous(), offsets(*ends))
    torch.testing.assert_close(plain, expected, rtol=2e-3, atol=4e-2)


def test_a_token_does_not_depend_on_how_many_tokens_its_expert_got() -> None:
    """Nor on its place among them, nor on the tokens of other experts."""
    token, others = random(1, 1, 70), random(2, 60, 70)
    weight = random(3, 3, 40, 70).transpose(1, 2)
    alone = grouped.grouped_mm(token, weight, offsets(0, 1, 1))
    # Interpreted, a tile's product is numpy's, which on some CPUs depends on a row's place in it.
    places = (0, 16) if INTERPRETED else (0, 16, 20, 32)
    for before, among, after in itertools.product((0, 7), places, (0, 5)):
        batch = torch.cat([others[: before + among], token, others[before + among :]])
        out = grouped.grouped_mm(batch, weight, offsets(before, before + among + 1 + after, 61))
        assert torch.equal(out[before + among], alone[0])


def test_the_same_check_catches_a_product_that_depends_on_the_tokens_of_an_expert() -> None:
    """What not to do: cut K if an expert got few tokens, to keep the device busy."""
    token, others = random(1, 1, 256), random(2, 20, 256)
    weight = random(3, 256, 40)
    tile = configs.FLOAT32[0][1]
    alone = in_segments(token[None], weight[None], None, tile)[0, 0]
    batch = torch.cat([token, others])
    assert not torch.equal(grouped.grouped_mm(batch, weight[None], offsets(21))[0], alone)


def test_tokens_after_the_last_expert_are_not_computed() -> None:
    """As expert parallelism has them: their rows are not read later."""
    x, weight = random(1, 30, 48), random(2, 2, 48, 24)
    out = grouped.grouped_mm(x, weight, offsets(4, 9))
    torch.testing.assert_close(out[:9], reference(x, weight, [4, 9]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", dict.fromkeys(tile for _, tile in configs.HOPPER), ids=str)
def test_every_tile_is_right(tile: configs.Tile) -> None:
    if tile.descriptors:
        pytest.skip("experts' tokens are not loaded by descriptors")
    x, weight = random(1, 70, 80, dtype=torch.float16), random(2, 3, 80, 72, dtype=torch.float16)
    out = grouped.product(x, weight, offsets(9, 9, 70), tile)
    torch.testing.assert_close(out, reference(x, weight, [9, 9, 70]), rtol=2e-3, atol=4e-2)


def test_the_other_forms_are_right() -> None:
    """Those of the gradients, and of a batch of matrices."""
    x, grad, weight = random(1, 9, 8), random(2, 9, 6), random(3, 3, 6, 8)
    ends = [2, 2, 9]
    spans = [slice(a, b) for a, b in pairwise([0, *ends])]
    to_weight = grouped.grouped_mm(grad.t(), x, offsets(*ends))
    expected = torch.stack([grad[span].t() @ x[span] for span in spans])
    torch.testing.assert_close(to_weight, expected, rtol=1e-4, atol=1e-5)
    across = grouped.grouped_mm(weight, x.t(), offsets(*ends))
    parts = [each @ x.t()[:, span] for each, span in zip(weight, spans, strict=True)]
    torch.testing.assert_close(across, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        grouped.grouped_mm(weight, weight.mT), weight @ weight.mT, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(NotImplementedError, match="bias"):
        grouped.grouped_mm(x, weight.mT, offsets(*ends), bias=random(4, 6))


@pytest.mark.parametrize("layout", ["slots outside", "slots inside", "a row"])
def test_the_experts_of_a_token_are_added_in_one_order(layout: str) -> None:
    """Alone or in a batch, wherever the results of the experts lie in memory."""
    parts = random(1, 40, 8, 96) * 100
    if layout == "slots inside":
        parts = parts.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "a row":
        parts = parts[..., :1]
    whole = reduce.sum_dims(parts, [1])
    for token in (0, 17, 39):
        alone = reduce.sum_dims(parts[token : token + 1].clone(), [1])
        assert torch.equal(alone[0], whole[token])
    in_order = parts[:, 0].clone()
    for slot in range(1, 8):
        in_order += parts[:, slot]
    assert torch.equal(whole, in_order)
