"""One small case of each kernel: right, and a row alone is what it is among others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from under_test import (
    DEVICE,
    attention,
    attention_layout,
    configs,
    grouped,
    matmul,
    norm,
    random,
    reduce,
    softmax,
    topk,
)

Op = Callable[[torch.Tensor], torch.Tensor]
WEIGHT = random(9, 70)
ROW_OPS: dict[str, tuple[Op, Op]] = {
    "product": (lambda x: matmul.mm(x, random(8, 40, 70).t()), lambda x: x @ random(8, 40, 70).t()),
    "rms_norm": (
        lambda x: norm.fused_rms_norm(x, [70], WEIGHT, 1e-6)[0],
        lambda x: F.rms_norm(x, (70,), WEIGHT, 1e-6),
    ),
    "layer_norm": (
        lambda x: norm.layer_norm(x, [70], WEIGHT, WEIGHT, 1e-6)[0],
        lambda x: F.layer_norm(x, (70,), WEIGHT, WEIGHT, 1e-6),
    ),
    "sum": (lambda x: reduce.sum_dims(x, [-1]), lambda x: x.sum(-1)),
    "mean": (lambda x: reduce.mean_dims(x, [-1]), lambda x: x.mean(-1)),
    "sum of 8": (lambda x: reduce.sum_dims(x[:, :8], [-1]), lambda x: x[:, :8].sum(-1)),
    "prod": (lambda x: reduce.prod_dim(x, -1), lambda x: x.prod(-1)),
    "norm": (lambda x: reduce.vector_norm(x, 2, [-1]), lambda x: x.norm(dim=-1)),
    "logsumexp": (lambda x: reduce.logsumexp(x, [-1]), lambda x: x.logsumexp(-1)),
    "softmax": (lambda x: softmax.softmax(x, -1, False), lambda x: x.softmax(-1)),
    "topk": (lambda x: topk.topk(x, 4)[0], lambda x: x.topk(4)[0]),
    "log_softmax": (lambda x: softmax.log_softmax(x, -1, False), lambda x: x.log_softmax(-1)),
}


@pytest.mark.parametrize("name", ROW_OPS)
def test_a_row_op_is_right_and_takes_each_row_by_itself(name: str) -> None:
    ours, stock = ROW_OPS[name]
    x = random(1, 3, 70)
    out = ours(x)
    torch.testing.assert_close(out, stock(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours(x[2:].clone())[0], out[2])


def test_products_through_descriptors() -> None:
    tile = configs.Tile(64, 64, 64, 4, 4)
    left = random(1, 1, 20, 192, dtype=torch.float16)
    right = random(2, 1, 72, 192, dtype=torch.float16).transpose(1, 2)
    plain = matmul.product(left, right, None, tile)
    torch.testing.assert_close(plain, left @ right, rtol=1e-2, atol=5e-2)
    assert torch.equal(matmul.product(left, right, None, replace(tile, descriptors=True)), plain)


def test_a_token_by_the_weight_of_its_expert() -> None:
    x, weight = random(1, 9, 24), random(2, 3, 24, 8)
    out = grouped.grouped_mm(x, weight, torch.tensor([2, 2, 9], device=DEVICE).int())
    expected = torch.cat([x[:2] @ weight[0], x[2:] @ weight[2]])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    alone = grouped.grouped_mm(x[2:3], weight, torch.tensor([0, 0, 1], device=DEVICE).int())
    assert torch.equal(alone[0], out[2])


@pytest.mark.parametrize("parallel", [False, True])
def test_attention_of_a_packed_request(monkeypatch: pytest.MonkeyPatch, parallel: bool) -> None:
    """A chunk of one request beside a decoded one; the second is also computed alone."""
    monkeypatch.setattr(attention_layout, "SPLIT", 64)
    attention._kept.clear()
    query = random(1, 1, 2, 4, 16)
    key, value = random(2, 1, 1, 90, 16), random(3, 1, 1, 90, 16)
    lengths = torch.tensor([[0, 0], [3, 20], [4, 90]], device=DEVICE).int()
    layout = attention_layout.Layout(2, *lengths.unbind(1))
    out = attention.attention(query, key, value, layout, parallel=parallel)
    stock = F.scaled_dot_product_attention(
        query[:, :, 3:], key[:, :, 20:], value[:, :, 20:], enable_gqa=True
    )
    torch.testing.assert_close(out[:, 3:], stock.transpose(1, 2), rtol=1e-4, atol=1e-5)
    bounds = torch.tensor([[0, 0], [1, 70]], device=DEVICE).int()
    alone = attention_layout.Layout(1, *bounds.unbind(1))
    again = attention.attention(query[:, :, 3:], key[:, :, 20:], value[:, :, 20:], alone)
    assert torch.equal(again, out[:, 3:])
