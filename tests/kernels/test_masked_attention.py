"""Windows, chunks, sinks and soft caps: a request attends the same whatever shares its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.attention import attention
from detcheck.kernels.cpu import masked
from detcheck.kernels.cpu.masked import QUERIES
from detcheck.kernels.cpu.stock import stock_attention

HEADS, KV_HEADS, DIM = 6, 2, 32
Visible = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PagedCache:
    """Stands for transformers' paged cache: the keys are packed already."""

    def update(self, key_states: Any, value_states: Any, **_: Any) -> Any:
        return key_states, value_states


class Layer(torch.nn.Module):
    layer_idx = 0
    is_causal = True


def causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """True if the query at one position of a request sees the key at another."""
    return key <= query


def window(size: int) -> Visible:
    return lambda query, key: (key <= query) & (key > query - size)


def chunk(size: int) -> Visible:
    return lambda query, key: (key <= query) & (key // size == query // size)


KINDS = {
    "full": causal, "window 2": window(2), "window 7": window(7), "window 40": window(40),
    "window 300": window(300), "chunk 8": chunk(8), "chunk 41": chunk(41),
}  # fmt: skip
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "sinks": {"s_aux": torch.linspace(-2, 2, HEADS)},
    "scaling": {"scaling": 0.3, "softcap": 20.0, "s_aux": torch.linspace(-1, 3, HEADS)},
}


def request(
    seed: int, length: int, dtype: torch.dtype = torch.float32, value_dim: int = DIM
) -> list[torch.Tensor]:
    """Query, key and value of a whole request, (1, heads, length, dim)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, value_dim)]
    return [torch.randn(1, h, length, dim, generator=generator).to(dtype) for h, dim in shapes]


def padded(
    requests: list[list[torch.Tensor]], visible: Visible, function: Any = attention, **options: Any
) -> list[torch.Tensor]:
    """Attend whole requests as rows of one batch padded on the left; each one's own output."""
    lengths = [parts[0].shape[2] for parts in requests]
    longest = max(lengths)
    rows = [[F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in parts] for parts in requests]
    query, key, value = (torch.cat(parts) for parts in zip(*rows, strict=True))
    at = torch.arange(longest)
    mask = torch.stack([visible(at[:, None], at) for _ in lengths])
    for row, length in enumerate(lengths):
        own = at - (longest - length)
        mask[row] = visible(own[:, None], own) & (own >= 0)
    out, _ = function(Layer(), query, key, value, mask[:, None], **options)
    return [out[row : row + 1, longest - length :] for row, length in enumerate(lengths)]


def expected(
    parts: list[torch.Tensor],
    visible: Visible,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    scaling: float = DIM**-0.5,
) -> torch.Tensor:
    """The formula, in float64."""
    query, key, value = (x.double() for x in parts)
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    at = torch.arange(query.shape[2])
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(at[:, None], at), -torch.inf)
    if s_aux is not None:
        sinks = s_aux.double().view(1, -1, 1, 1).expand(-1, -1, len(at), -1)
        scores = torch.cat((scores, sinks), -1)
    return (scores.softmax(-1)[..., : len(at)] @ value).transpose(1, 2)


@few("value_dim", [DIM, 24, 48])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_right(kind: str, features: str, value_dim: int) -> None:
    parts, options = request(1, 61, value_dim=value_dim), FEATURES[features]
    (got,) = padded([parts], KINDS[kind], **options)
    wanted = expected(parts, KINDS[kind], **options).float()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@few("dtype", [torch.float32, torch.bfloat16], ids=str)
@few("value_dim", [DIM, 24, 48])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(
    kind: str, features: str, value_dim: int, dtype: torch.dtype
) -> None:
    probe, *others = (request(seed, n, dtype, value_dim) for seed, n in enumerate((45, 77, 9, 45)))
    options = FEATURES[features]
    (alone,) = padded([probe], KINDS[kind], **options)
    for position in range(len(others) + 1):
        batch = [*others[:position], probe, *others[position:]]
        assert torch.equal(padded(batch, KINDS[kind], **options)[position], alone)


@pytest.mark.parametrize("features", ["plain", "scaling"])
@pytest.mark.parametrize("kind", ["window 40", "window 300"])
def test_a_long_prompt_with_a_window_is_computed_in_parts(kind: str, features: str) -> None:
    """Of more queries than a part has: right, and the same beside others."""
    probe, *others = (request(seed, n) for seed, n in enumerate((2 * QUERIES + 61, 350, 9)))
    options, visible = FEATURES[features], KINDS[kind]
    (alone,) = padded([probe], visible, **options)
    assert torch.equal(padded([*others, probe], visible, **options)[2], alone)
    wanted = expected(probe, visible, **options).float()
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_prompt_have_the_keys_that_they_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a long prompt with a window takes less time than one without."""
    num_keys = []

    def record(query: Any, key: Any, *rest: Any, **options: Any) -> Any:
        num_keys.append(key.shape[2])
        return stock_attention(query, key, *rest, **options)

    monkeypatch.setattr(masked, "stock_attention", record)
    padded([request(1, 500)], window(40))
    assert num_keys
    assert max(num_keys) < QUERIES + 40


def stock(_: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2), None


def test_the_same_check_catches_stock_attention_with_a_window() -> None:
    """The twin: padding moves the blocks in which the stock kernel adds up the keys."""
    probe, long = request(0, 700), request(1, 1100)
    (alone,) = padded([probe], window(600), stock)
    assert not torch.equal(padded([probe, long], window(600), stock)[0], alone)
    (alone,) = padded([probe], window(600))
    assert torch.equal(padded([probe, long], window(600))[0], alone)


def decoded(parts: list[torch.Tensor], visible: Visible, rolling: bool) -> torch.Tensor:
    """The last query by itself; a rolling cache holds only the keys that it sees."""
    query, key, value = parts
    seen = visible(torch.tensor(key.shape[2] - 1), torch.arange(key.shape[2]))
    mask = seen[None, None, None]
    if rolling:
        keys = slice(int(seen.nonzero()[0]), None)
        key, value, mask = key[:, :, keys], value[:, :, keys], None
    return attention(Layer(), query[:, :, -1:], key, value, mask)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rolling_cache_gives_what_a_whole_cache_gives(kind: str) -> None:
    parts = request(2, 50)
    assert torch.equal(decoded(parts, KINDS[kind], True), decoded(parts, KINDS[kind], False))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_query_by_query_a_prefill_gives_what_decoding_gives(kind: str, features: str) -> None:
    """`prefill-decode` with a cache that rolls."""
    options, visible = FEATURES[features], KINDS[kind]
    query, key, value = request(3, 50)
    (whole,) = padded([[query, key, value]], visible, query_by_query=True, **options)
    for at in (0, 6, 7, 8, 40, 41, 49):
        keys = visible(torch.tensor(at), torch.arange(at + 1)).nonzero()[:, 0]
        out, _ = attention(
            Layer(), query[:, :, [at]], key[:, :, keys], value[:, :, keys], None, **options
        )
        assert torch.equal(out, whole[:, at : at + 1])


def packed(requests: list[list[torch.Tensor]], **options: Any) -> list[torch.Tensor]:
    """Attend requests (their last queries, their keys) in one packed call; each one's output."""
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*requests, strict=True))
    q_lens = [parts[0].shape[2] for parts in requests]
    bounds = {
        "cu_seq_lens_q": torch.tensor([0, *q_lens]).cumsum(0),
        "cu_seq_lens_k": torch.tensor([0, *(parts[1].shape[2] for parts in requests)]).cumsum(0),
    }
    out, _ = attention(Layer(), query, key, value, None, cache=PagedCache(), **bounds, **options)
    return list(out.split(q_lens, dim=1))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", [2, 7, 40, 300])
@pytest.mark.parametrize("q_len", [1, 5, 45])
def test_packed_requests_have_windows_too(size: int, q_len: int, features: str) -> None:
    options = {**FEATURES[features], "sliding_window": size}
    others = [request(1, 70), request(2, 3)]
    query, key, value = request(4, 45)
    probe = [query[:, :, -q_len:], key, value]
    (alone,) = packed([probe], **options)
    for position in range(3):
        batch = [*others[:position], probe, *others[position:]]
        assert torch.equal(packed(batch, **options)[position], alone)
    wanted = expected([query, key, value], window(size), **FEATURES[features])[:, -q_len:].float()
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-5)


def test_a_paged_cache_that_rolls_sets_the_window() -> None:
    """Some layers do not hand over their window; the cache knows it."""

    class Allocator:
        sliding_window = 7

    class RollingCache(PagedCache):
        layer_to_allocator = (Allocator(),)

    parts = request(5, 30)
    bounds = {"cu_seq_lens_q": torch.tensor([0, 30]), "cu_seq_lens_k": torch.tensor([0, 30])}
    out, _ = attention(Layer(), *parts, None, cache=RollingCache(), **bounds)
    assert torch.equal(out, packed([parts], sliding_window=7)[0])


def test_a_window_as_long_as_the_request_changes_nothing() -> None:
    parts = request(6, 45)
    assert torch.equal(packed([parts], sliding_window=45)[0], packed([parts])[0])
    assert not torch.equal(packed([parts], sliding_window=44)[0], packed([parts])[0])


def test_sequences_in_one_row_do_not_see_each_other() -> None:
    """A trainer's row of two sequences gives each what it gets alone."""
    first, second = request(7, 21), request(8, 30)
    row = [torch.cat(parts, 2) for parts in zip(first, second, strict=True)]
    mask = torch.block_diag(*(torch.ones(n, n).tril() for n in (21, 30))).bool()[None, None]
    out, _ = attention(Layer(), *row, mask)
    (alone,) = padded([second], causal)
    assert torch.equal(out[:, 21:], alone)


@pytest.mark.parametrize("features", FEATURES)
def test_gradients_are_those_of_the_formula(features: str) -> None:
    def gradients(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        parts = [x.double().requires_grad_() for x in request(9, 21)]
        function(parts, window(7), **FEATURES[features]).sin().sum().backward()
        return [x.grad for x in parts if x.grad is not None]

    ours = gradients(lambda parts, visible, **options: padded([parts], visible, **options)[0])
    for got, wanted in zip(ours, gradients(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
