"""Attention with masks that are no intervals of keys, with biases, and in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from detcheck.errors import UsageError
from detcheck.kernels.attention import attention
from detcheck.kernels.cpu.any_mask import attend
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.overrides import FUNCTION_OP
from detcheck.kernels.scores import Scores
from detcheck.kernels.visible_keys import UnreadableMaskError, read_mask

HEADS, KV_HEADS, DIM = 6, 2, 32

pytestmark = pytest.mark.usefixtures("two_threads")


class Causal(torch.nn.Module):
    layer_idx, is_causal = 0, True


class BothDirections(torch.nn.Module):
    layer_idx, is_causal = 0, False


def states(batch: int, q_len: int, k_len: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(HEADS, q_len), (KV_HEADS, k_len), (KV_HEADS, k_len)]
    return [torch.randn(batch, h, n, DIM, generator=generator).to(dtype) for h, n in shapes]


def hole() -> torch.Tensor:
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    mask[..., 3] = False
    return mask


def causal(length: int = 6) -> torch.Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()


def moving_back() -> torch.Tensor:
    """The fourth query sees two keys, the fifth sees all keys before it."""
    mask = causal()
    mask[..., 3, :2] = False
    return mask


MASKS: dict[str, torch.Tensor] = {
    "hole": hole(),
    "moving back": moving_back(),
    "padding in the middle": causal() & (torch.arange(6) != 3),
    "padding on the right, bidirectional": (torch.arange(6) < 4).expand(1, 1, 6, 6),
    "bidirectional": torch.ones(1, 1, 6, 6, dtype=torch.bool),
    "bias": -torch.arange(6.0).flip(0).expand(1, 1, 1, 6),
    "bias of each head": torch.zeros(1, HEADS, 6, 6).masked_fill(~causal(), -torch.inf) + 0.5,
    "by head": causal().repeat(1, HEADS, 1, 1),
    "first queries see nothing": causal(9)[:, :, :, :6].roll(1, 2)[:, :, :6].logical_and(hole()),
}


def stock(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> Any:
    added = mask if mask.dtype == torch.bool else mask.to(query.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=added, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_no_intervals_give_the_values_of_stock(
    name: str, dtype: torch.dtype
) -> None:
    mask = MASKS[name]
    with pytest.raises(UnreadableMaskError, match="On a GPU"):
        read_mask(mask, 1, 6)
    parts = states(2, mask.shape[2], 6, dtype)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    found = attention(Causal(), *parts, mask)[0]
    torch.testing.assert_close(found, stock(*parts, mask), atol=bound, rtol=bound)


def beside(mask: torch.Tensor, padding: int, other: torch.Tensor) -> torch.Tensor:
    """The batch (2, …) of a row with padding before it, and of `other`, the longer row's mask."""
    q_pad = padding if mask.shape[2] > 1 else 0
    if mask.dtype == torch.bool:
        padded = F.pad(mask, (padding, 0, q_pad, 0), value=False)
    else:
        padded = F.pad(mask, (padding, 0, q_pad, 0), value=torch.finfo(torch.float32).min)
    heads = max(len(mask[0]), len(other[0]))
    return torch.cat([x.expand(1, heads, *x.shape[2:]) for x in (padded, other)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("padding", [1, 17])
def test_a_row_does_not_depend_on_its_padding(name: str, dtype: torch.dtype, padding: int) -> None:
    mask = MASKS[name]
    alone = states(1, mask.shape[2], 6, dtype)
    q_pad = padding if mask.shape[2] > 1 else 0
    longer = states(1, alone[0].shape[2] + q_pad, 6 + padding, dtype)
    padded = [F.pad(alone[0], (0, 0, q_pad, 0))]
    padded += [F.pad(x, (0, 0, padding, 0), value=3.0) for x in alone[1:]]
    batch = [torch.cat(pair) for pair in zip(padded, longer, strict=True)]
    seen = torch.ones(1, 1, batch[0].shape[2], 6 + padding, dtype=torch.bool).tril(6 + padding - 1)
    other = seen if mask.dtype == torch.bool else torch.zeros(seen.shape)
    found = attention(Causal(), *batch, beside(mask, padding, other))[0]
    assert torch.equal(found[:1, q_pad:], attention(Causal(), *alone, mask)[0])


VIEWED: dict[str, tuple[int, dict[str, Any]]] = {
    "decoding": (1, {}),
    "a prompt": (6, {}),
    "query by query": (6, {"query_by_query": True}),
    "a window": (6, {"sliding_window": 3, "query_by_query": True}),
    "another mask": (6, {"attention_mask": moving_back()}),
    "a bias": (6, {"position_bias": torch.zeros(1, HEADS, 6, 6)}),
}


@pytest.mark.parametrize("value_dim", [DIM, 24])
@pytest.mark.parametrize("name", VIEWED)
def test_results_are_contiguous_as_those_of_transformers(name: str, value_dim: int) -> None:
    """Models may take a view of them. The twin: one kernel's own result cannot be viewed so."""
    q_len, options = VIEWED[name]
    query, key, value = states(2, q_len, 6, torch.float32)
    options = {"attention_mask": None, **options}
    found = attention(Causal(), query, key, value[..., :value_dim], **options)[0]
    assert found.view(2, q_len, -1).shape == (2, q_len, HEADS * value_dim)
    raw = attend(query, key, value, None, Scores())
    assert raw.is_contiguous() == (q_len == 1)


def test_a_readable_row_is_the_same_beside_an_unreadable_one() -> None:
    """The kernels of a row may depend on its own mask only."""
    parts = states(2, 6, 6, torch.float32)
    alone = attention(Causal(), *(x[:1] for x in parts), causal())[0]
    both = torch.cat([causal(), moving_back()])
    assert torch.equal(attention(Causal(), *parts, both)[0][:1], alone)
    planted = attend(*parts, both, Scores())  # the whole batch by the unreadable row's kernel
    assert not torch.equal(planted[:1], alone)


@pytest.mark.parametrize("window", [None, 4])
def test_a_bias_of_positions_holds_in_steps(window: int | None) -> None:
    """A prompt at once, and token by token: the same bits, without a mask of transformers'."""
    query, key, value = states(1, 9, 9, torch.float32)
    bias = torch.randn(1, HEADS, 9, 9, generator=torch.Generator().manual_seed(1))
    options = {"sliding_window": window}
    whole = attention(Causal(), query, key, value, None, position_bias=bias, **options)[0]
    for at in range(9):
        keys = slice(0, at + 1)
        step = attention(
            Causal(), query[:, :, at : at + 1], key[:, :, keys], value[:, :, keys], None,
            position_bias=bias[:, :, at : at + 1, keys], **options,
        )[0]  # fmt: skip
        assert torch.equal(step, whole[:, at : at + 1])
    seen = causal(9) if window is None else causal(9).triu(1 - window)
    expected = stock(query, key, value, bias.masked_fill(~seen, -torch.inf))
    torch.testing.assert_close(whole, expected)


def test_attention_in_both_directions_does_not_depend_on_padding() -> None:
    query, key, value = states(1, 7, 7, torch.float32)
    alone = attention(BothDirections(), query, key, value, None)[0]
    padded = [F.pad(x, (0, 0, 5, 0), value=2.0) for x in (query, key, value)]
    mask = (torch.arange(12) >= 5).expand(1, 1, 12, 12)
    assert torch.equal(attention(BothDirections(), *padded, mask)[0][:, 5:], alone)
    torch.testing.assert_close(alone, stock(query, key, value, torch.ones(7, 7).bool()))


def test_caps_and_sinks_take_part() -> None:
    query, key, value = states(2, 6, 6, torch.float32)
    sinks = torch.linspace(-1, 1, HEADS)
    found = attend(query, key, value, moving_back(), Scores(0.2, 3.0, sinks))
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    weights = 3.0 * torch.tanh(query @ keys.mT * 0.2 / 3.0)
    weights = weights.masked_fill(~moving_back(), -torch.inf)
    weights = torch.cat((weights, sinks.view(1, HEADS, 1, 1).expand(2, -1, 6, -1)), -1)
    expected = (weights.softmax(-1)[..., :-1] @ values).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_gradients_are_those_of_stock() -> None:
    parts = [x.requires_grad_() for x in states(1, 6, 6, torch.float32)]
    mask = MASKS["bias of each head"]
    ours = torch.autograd.grad(attention(Causal(), *parts, mask)[0].square().sum(), parts)
    expected = torch.autograd.grad(stock(*parts, mask).square().sum(), parts)
    torch.testing.assert_close(ours, expected)


def test_packed_requests_with_a_bias_are_refused() -> None:
    bounds = torch.tensor([0, 3, 6])
    with pytest.raises(UsageError, match="a position bias in continuous batching"):
        attention(
            Causal(), *states(1, 6, 6, torch.float32), None,
            position_bias=torch.zeros(1), cu_seq_lens_q=bounds, cu_seq_lens_k=bounds,
        )  # fmt: skip


MASKED = torch.where(causal(), 0.0, torch.finfo(torch.float32).min)
CALLS: dict[str, dict[str, Any]] = {
    "a mask that is added": {"attn_mask": MASKED},
    "a mask of booleans": {"attn_mask": causal()},
    "causal": {"is_causal": True, "scale": 0.3},
    "one key-value head": {"heads": 1},
    "groups of heads": {"heads": KV_HEADS, "enable_gqa": True, "attn_mask": MASKED},
}


def called(name: str, parts: list[torch.Tensor], **changes: Any) -> torch.Tensor:
    options = {**CALLS[name], **changes}
    heads = options.pop("heads", HEADS)
    key, value = (x[:, :1].expand(-1, heads, -1, -1) for x in parts[1:])
    return F.scaled_dot_product_attention(parts[0], key, value, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_pytorchs_function_gives_the_values_of_stock(name: str, dtype: torch.dtype) -> None:
    parts = states(2, 6, 6, dtype)
    mask = CALLS[name].get("attn_mask")
    added = {} if mask is None or mask.dtype == torch.bool else {"attn_mask": mask.to(dtype)}
    expected = called(name, parts, **added)
    before = F.scaled_dot_product_attention
    with batch_invariant("attention") as mode:
        found = called(name, parts, **added)
        assert mode.proof().overrides[FUNCTION_OP] == 1
    assert F.scaled_dot_product_attention is before
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)


def rows_that_padding_moves() -> int:
    """Numbers of masked keys that change the function's result for a row."""
    parts = states(1, 6, 6, torch.float32)
    alone = called("a mask that is added", parts)
    moved = 0
    for padding in (1, 7, 16, 61):
        padded = [F.pad(x, (0, 0, padding, 0), value=2.0) for x in parts]
        mask = F.pad(MASKED, (padding, 0, padding, 0), value=torch.finfo(torch.float32).min)
        found = called("a mask that is added", padded, attn_mask=mask)[:, :, padding:]
        moved += int(not torch.equal(found, alone))
    return moved


def test_padding_does_not_move_pytorchs_function() -> None:
    assert rows_that_padding_moves() > 0
    with batch_invariant():
        assert rows_that_padding_moves() == 0


def test_transformers_interface_keeps_its_own_kernels() -> None:
    """Written-out attention is slow: the interface must not come to it by PyTorch's function."""
    windows = {"sliding_window": 3}
    with batch_invariant() as mode:
        for q_len, kwargs in ((1, {}), (6, {}), (6, windows), (1, windows)):
            attention(Causal(), *states(2, q_len, 6, torch.float32), None, **kwargs)
        assert mode.proof().overrides[FUNCTION_OP] == 0


def test_other_calls_of_pytorchs_function_are_stock() -> None:
    query = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    expected = F.scaled_dot_product_attention(query, query, query)
    with batch_invariant():
        torch.testing.assert_close(F.scaled_dot_product_attention(query, query, query), expected)
        with pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(query, query[:, :3], query)


def test_query_by_query_each_query_has_the_kernel_that_decodes_it() -> None:
    """The first queries of such a row see all their keys: decoded, they are read as intervals."""
    query, key, value = states(1, 9, 9, torch.float32)
    mask = causal(9)
    mask[..., 5:, 2] = False
    whole = attention(Causal(), query, key, value, mask, query_by_query=True)[0]
    steps = [
        attention(
            Causal(), query[:, :, at : at + 1], key[:, :, : at + 1], value[:, :, : at + 1],
            mask[:, :, at : at + 1, : at + 1], query_by_query=True,
        )[0]
        for at in range(9)
    ]  # fmt: skip
    assert torch.equal(torch.cat(steps, 1), whole)
    at_once = attention(Causal(), query, key, value, mask)[0]
    assert not torch.equal(at_once, whole)  # the batch-invariant level does not promise it
    torch.testing.assert_close(at_once, whole)


def test_query_by_query_a_bias_may_reach_later_keys() -> None:
    parts = states(1, 6, 6, torch.float32)
    both = MASKS["padding on the right, bidirectional"]
    found = attention(Causal(), *parts, both, query_by_query=True)[0]
    torch.testing.assert_close(found, stock(*parts, both))
