"""Attention as models call it: through transformers' table, which also has the invariant kernel.

A batch is (requests, heads, tokens, head_dim); results are (requests, tokens, heads, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.probes.shapes import LayerShapes

REQUESTS = 17
"""Requests of the reference batch: one more than a power of two."""
PADDINGS = (1, 15, 32)
"""Tokens of padding on the left."""
CHUNKS = (1, 16, 32, 48)
"""Tokens of the first of two prefill steps."""
CACHED = (16, 32, 48, 64)
"""Tokens of a prefix that is taken from the cache: whole blocks of 16. After 64 of 65, one token
is left to compute."""


class _Cache:
    """Stands in for the paged cache; returns its arguments, since the keys are packed already."""

    def update(self, key_states: Any, value_states: Any, **_: Any) -> Any:
        return key_states, value_states


def requests(shapes: LayerShapes, queries: int, keys: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Seeded query, key and value of a batch, float32."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((shapes.num_heads, queries), (shapes.num_kv_heads, keys), (shapes.num_kv_heads, keys))
    return tuple(
        torch.randn(REQUESTS, heads, length, shapes.head_dim, generator=generator) * 2
        for heads, length in sizes
    )


def decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One new token of each request against its keys, in one call."""
    return _attend(query, key, value, None)


def prefill(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Whole prompts of one length under a causal mask."""
    return _attend(query, key, value, None)


def packed_decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Computes the same as `decode`, packed for continuous batching: one sequence, a block mask."""
    count, _, keys, _ = key.shape
    query, key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value))
    mask = torch.eye(count, dtype=torch.bool, device=query.device)
    bounds = torch.arange(count + 1, dtype=torch.int32, device=query.device)
    out = _attend(
        query,
        key,
        value,
        mask.repeat_interleave(keys, 1)[None, None],
        cache=_Cache(),
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds * keys,
    )
    return out.transpose(0, 1)


def request_pairs(
    inputs: tuple[torch.Tensor, ...],
) -> dict[str, Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]]:
    """By relation: pairs of (reference rows, rows to compare), for a batch made by `requests`."""
    tokens = inputs[0].shape[2]
    pairs = {"padding": lambda: _padded(*inputs)}
    if tokens > 1:
        pairs["chunking"] = lambda: _chunked(*inputs)
        pairs["prefill-decode"] = lambda: _token_by_token(*inputs)
        pairs["prefix-cache"] = lambda: _from_cache(*inputs)
    return pairs


def _padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The requests without padding, and the same padded on the left as beside a longer one."""
    plain = _attend(query, key, value, _causal(query, key, 0))
    for padding in PADDINGS:
        keys, values = (F.pad(x, (0, 0, padding, 0)) for x in (key, value))
        # Queries are padded if each key has one; a decode step has a single query.
        skip = padding if query.shape[2] > 1 else 0
        padded = F.pad(query, (0, 0, skip, 0))
        out = _attend(padded, keys, values, _causal(padded, keys, padding))
        yield plain.flatten(0, 1), out[:, skip:].flatten(0, 1)


def _chunked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A prefill in one step, and the same in two."""
    whole = prefill(query, key, value)
    for size in CHUNKS:
        if size < query.shape[2]:
            first = _step(query, key, value, 0, size)
            rest = _step(query, key, value, size, query.shape[2])
            yield whole.flatten(0, 1), torch.cat((first, rest), 1).flatten(0, 1)


def _token_by_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All tokens in one prefill, and each token decoded on its own."""
    steps = [_step(query, key, value, at, at + 1) for at in range(query.shape[2])]
    yield prefill(query, key, value).flatten(0, 1), torch.cat(steps, 1).flatten(0, 1)


def _from_cache(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole prompts computed afresh, and only their ends, after a prefix from the cache.

    The ends are packed as in continuous batching. Every second request shares the prefix of the
    one before it, goes on in its own way, and is not compared.
    """
    tokens, live = query.shape[2], torch.arange(query.shape[0], device=query.device)
    owner = live - live % 2
    whole = prefill(query, key, value)[owner == live]
    for cached in CACHED:
        if cached < tokens:
            keys, values = (
                torch.cat((x[owner, :, :cached], x[:, :, cached:]), 2) for x in (key, value)
            )
            ends = _packed_ends(query[:, :, cached:], keys, values)
            yield whole[:, cached:].flatten(0, 1), ends[owner == live].flatten(0, 1)


def _packed_ends(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The last tokens of every request against all its keys, in one packed call."""
    count, _, queries, _ = query.shape
    causal = _causal(query[:1], key[:1], 0)[0, 0]
    query, key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value))
    bounds = torch.arange(count + 1, dtype=torch.int32, device=query.device)
    out = _attend(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        torch.block_diag(*[causal] * count).bool()[None, None],
        cache=_Cache(),
        cu_seq_lens_q=bounds * queries,
        cu_seq_lens_k=bounds * causal.shape[1],
    )
    return out.unflatten(1, (count, queries))[0]


def _step(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, end: int
) -> torch.Tensor:
    """Queries [start, end) against the keys up to `end`."""
    part = [query[:, :, start:end], key[:, :, :end], value[:, :, :end]]
    mask = None if end - start in (1, end) else _causal(part[0], part[1], 0)
    return _attend(part[0].contiguous(), part[1].contiguous(), part[2].contiguous(), mask)


def _causal(query: torch.Tensor, key: torch.Tensor, padding: int) -> torch.Tensor:
    """Boolean mask (requests, 1, queries, keys): causal, the first `padding` keys hidden."""
    queries, keys = query.shape[2], key.shape[2]
    visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    # As in a real batch, padding still sees itself: a row that sees nothing would be NaN.
    visible[:, :padding] &= torch.eye(queries, keys, dtype=torch.bool, device=query.device)[
        :, :padding
    ] & (queries == keys)
    return visible.expand(query.shape[0], 1, queries, keys)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **packed: Any,
) -> torch.Tensor:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layer: Any = torch.nn.Module()
    layer.num_key_value_groups = query.shape[1] // key.shape[1]
    layer.layer_idx, layer.is_causal = 0, True
    scaling = query.shape[3] ** -0.5
    out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        layer, query, key, value, mask, scaling=scaling, **packed
    )
    return out
