"""Rows as trainers lay them out: padded on the right, or several sequences packed into one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.attention import attention
from detcheck.kernels.in_force import kernels_in_force
from detcheck.models.tiny import config_of, shrunk, tiny_model

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = (19, 31, 1, 8)
HEADS, KV_HEADS, DIM, WINDOW = 6, 2, 32, 7
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "sinks": {"s_aux": torch.linspace(-2, 2, HEADS)},
}


class Layer(torch.nn.Module):
    layer_idx = 0
    is_causal = True


def request(seed: int, length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value of a request, (1, heads, length, dim)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (HEADS, KV_HEADS, KV_HEADS)
    return [torch.randn(1, h, length, DIM, generator=generator).to(dtype) for h in shapes]


def visible(length: int, window: int | None) -> torch.Tensor:
    """(length, length) of booleans: causal, within the window if there is one."""
    at = torch.arange(length)
    seen = at <= at[:, None]
    return seen if window is None else seen & (at > at[:, None] - window)


def in_padded_rows(
    requests: Sequence[list[torch.Tensor]], window: int | None, **options: Any
) -> list[torch.Tensor]:
    """Attend as rows of a batch padded on the right; each request's own output."""
    lengths = [parts[0].shape[2] for parts in requests]
    longest = max(lengths)
    rows = [[F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in parts] for parts in requests]
    states = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = (visible(longest, window) & real[:, None])[:, None]
    out, _ = attention(Layer(), *states, mask, **options)
    assert out[~real].eq(0).all()
    return [out[row : row + 1, :length] for row, length in enumerate(lengths)]


def in_one_row(
    requests: Sequence[list[torch.Tensor]], window: int | None, **options: Any
) -> list[torch.Tensor]:
    """Attend packed into one row; each request's own output."""
    lengths = [parts[0].shape[2] for parts in requests]
    states = [torch.cat(parts, 2) for parts in zip(*requests, strict=True)]
    mask = torch.block_diag(*(visible(length, window) for length in lengths)).bool()
    out, _ = attention(Layer(), *states, mask[None, None], **options)
    return list(out.split(lengths, 1))


Layout = Callable[..., list[torch.Tensor]]
LAYOUTS: dict[str, Layout] = {"padded": in_padded_rows, "packed": in_one_row}


@pytest.mark.parametrize("query_by_query", [False, True])
@few("dtype", DTYPES, ids=str)
@few("window", [None, WINDOW])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_request_has_the_bits_that_it_has_alone(
    name: str, kind: str, window: int | None, dtype: torch.dtype, query_by_query: bool
) -> None:
    requests = [request(seed, length, dtype) for seed, length in enumerate(LENGTHS)]
    options = {**KINDS[kind], "query_by_query": query_by_query}
    together = LAYOUTS[name](requests, window, **options)
    for parts, out in zip(requests, together, strict=True):
        alone, _ = attention(Layer(), *parts, None, sliding_window=window, **options)
        assert torch.equal(out, alone)


def stock_rows(requests: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    """The stock kernel over a batch padded on the right, with the mask of transformers."""
    lengths = [parts[0].shape[2] for parts in requests]
    longest = max(lengths)
    rows = [[F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in parts] for parts in requests]
    states = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = (visible(longest, None) & real[:, None])[:, None]
    out = F.scaled_dot_product_attention(*states, attn_mask=mask, enable_gqa=True)
    out = out.transpose(1, 2)
    return [out[row : row + 1, :length] for row, length in enumerate(lengths)]


def test_stock_attention_gives_other_bits_in_a_padded_batch() -> None:
    """The twin: a longer neighbour is a different order of summation."""
    requests = [request(seed, length, torch.float32) for seed, length in enumerate((90, 600))]
    query, key, value = requests[0]
    alone = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert not torch.equal(stock_rows(requests)[0], alone.transpose(1, 2))
    assert torch.equal(in_padded_rows(requests, None)[0], attention(Layer(), *requests[0], None)[0])


@pytest.mark.parametrize("seen", ["nothing", "itself", "the row's own keys"])
def test_what_padding_on_the_right_may_see_does_not_matter(seen: str) -> None:
    parts = request(0, 6, torch.float32)
    mask = visible(6, None)[None, None].clone()
    mask[..., 4:] = False
    if seen != "the row's own keys":
        views = {"nothing": torch.zeros(2, 6), "itself": torch.eye(6)[4:]}
        mask[..., 4:, :] = views[seen].bool()
    alone, _ = attention(Layer(), *(x[:, :, :4] for x in parts), None)
    assert torch.equal(attention(Layer(), *parts, mask)[0][:, :4], alone)


def test_padding_may_be_on_both_sides() -> None:
    parts = request(0, 9, torch.float32)
    mask = visible(9, None)[None, None].clone()
    mask[..., :2] = mask[..., 6:] = False
    alone, _ = attention(Layer(), *(x[:, :, 2:6] for x in parts), None)
    assert torch.equal(attention(Layer(), *parts, mask)[0][:, 2:6], alone)


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_are_those_of_the_formula(name: str, window: int | None) -> None:
    def gradients(function: Any) -> list[torch.Tensor]:
        requests = [request(seed, n, torch.float64) for seed, n in enumerate(LENGTHS)]
        leaves = [x.requires_grad_() for parts in requests for x in parts]
        torch.cat(function(requests), 1).sin().sum().backward()
        return [x.grad for x in leaves if x.grad is not None]

    def formula(requests: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
        outs = []
        for query, *grouped in requests:
            key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in grouped)
            weights = query @ key.mT * DIM**-0.5
            seen = visible(query.shape[2], window)
            outs.append(
                (weights.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)
            )
        return outs

    ours = gradients(lambda requests: LAYOUTS[name](requests, window, query_by_query=True))
    wanted = gradients(formula)
    assert len(ours) == len(wanted) == 3 * len(LENGTHS)
    for got, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def sequences(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, vocabulary, (n,), generator=generator) for n in (29, 41, 17)]


def forward(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits (rows, tokens, vocabulary)."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def single_rows(model: Any, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    return [forward(model, one[None])[0] for one in ids]


def padded_rows(model: Any, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(one) for one in ids])
    mask = (torch.arange(rows.shape[1]) < lengths[:, None]).long()
    logits = forward(model, rows, attention_mask=mask)
    return [row[: len(one)] for row, one in zip(logits, ids, strict=True)]


def packed_row(model: Any, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    positions = torch.cat([torch.arange(len(one)) for one in ids])
    logits = forward(model, torch.cat(ids)[None], position_ids=positions[None])
    return list(logits[0].split([len(one) for one in ids]))


def decoded(model: Any, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same logits, token by token through a cache."""
    rows = []
    for one in ids:
        cache, steps = None, []
        for token in one:
            out = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits[0])
        rows.append(torch.cat(steps))
    return rows


MODELS = {"dense": "qwen2", "experts": "qwen3_moe", "window": "mistral", "soft caps": "gemma2"}
HIDDEN_BY_ROUNDING = ("soft caps", torch.bfloat16)
"""Here the stock kernels give equal bits too: rounding to bfloat16 hides their differences."""
PASSES = {"single": single_rows, "padded": padded_rows, "packed": packed_row}


@few("dtype", DTYPES, ids=str)
@few("kind", MODELS)
def test_decode_steps_and_every_layout_agree(kind: str, dtype: torch.dtype) -> None:
    """With gradients on, as a trainer has them; the stock twin differs."""
    model = tiny_model(shrunk(config_of(MODELS[kind])), dtype)
    ids = sequences(model.config.vocab_size)
    equal: dict[str, dict[str, bool]] = {}
    for kernels in ("stock", "fully-invariant"):
        with kernels_in_force(kernels):
            with torch.no_grad():
                steps = decoded(model, ids)
            passes = {name: run(model, ids) for name, run in PASSES.items()}
        assert all(logits.requires_grad for each in passes.values() for logits in each)
        equal[kernels] = {
            name: all(torch.equal(*pair) for pair in zip(each, steps, strict=True))
            for name, each in passes.items()
        }
    assert equal["fully-invariant"] == dict.fromkeys(PASSES, True)
    if (kind, dtype) != HIDDEN_BY_ROUNDING:
        assert not any(equal["stock"].values())


@pytest.mark.parametrize("name", ["padded", "packed"])
def test_the_weights_get_the_gradients_of_single_rows(name: str) -> None:
    model = tiny_model(shrunk(config_of("mistral")), torch.float32)
    ids = sequences(model.config.vocab_size)

    def gradients(run: Callable[..., list[torch.Tensor]], kernels: str) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with kernels_in_force(kernels):
            scores = [logits.log_softmax(-1)[:-1] for logits in run(model, ids)]
            chosen = [
                row.gather(1, one[1:, None]).sum() for row, one in zip(scores, ids, strict=True)
            ]
            torch.stack(chosen).sum().backward()
        return {key: weight.grad.clone() for key, weight in model.named_parameters()}

    ours = gradients(PASSES[name], "fully-invariant")
    for key, expected in gradients(single_rows, "stock").items():
        torch.testing.assert_close(ours[key], expected, rtol=1e-3, atol=1e-4)
