"""A paged cache returns the keys in the order in which attention's calls take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detcheck.kernels.attention import attention

KEYS, WINDOWED = 100, "sliding_attention"


class ReadingCache:
    """A paged cache that is read by index; slot n has the n-th key from the end."""

    index = 0

    def __init__(self, states: list[torch.Tensor], layer_type: str):
        self.slots = [x[0].transpose(0, 1).flip(0).contiguous() for x in states]
        self.layer_type, self.num_read = layer_type, 0
        self.layer_to_allocator = [self]

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"][self.layer_type]
        at = kwargs["read_index"][self.index]
        self.num_read = len(at)
        return tuple(x.index_select(0, at).transpose(0, 1)[None] for x in self.slots)


class WholeCache:
    """Returns the packed keys as they are given to it."""

    def update(self, key_states: Any, value_states: Any, **_: Any) -> Any:
        return key_states, value_states


class Layer(torch.nn.Module):
    layer_idx = 0
    is_causal = True


@pytest.mark.parametrize("kind", ["full_attention", WINDOWED])
@pytest.mark.parametrize("query_by_query", [False, True])
@pytest.mark.parametrize("q_len", [1, 3])
def test_each_query_gets_its_keys(q_len: int, query_by_query: bool, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, 64, generator=generator).bfloat16()
        for heads, length in ((6, q_len + 1), (2, KEYS), (2, KEYS))
    )
    bounds, read = torch.tensor([0, 70, KEYS]), torch.arange(KEYS).flip(0)
    common: dict[str, Any] = {
        "cu_seq_lens_q": torch.tensor([0, q_len, q_len + 1]),
        "query_by_query": query_by_query,
    }
    cache, indices = ReadingCache([key, value], kind), [read]
    got, _ = attention(
        Layer(),
        query,
        key[:, :, -2:],
        value[:, :, -2:],
        None,
        cache=cache,
        cu_seq_lens_k={kind: bounds},
        read_index=indices,
        **common,
    )
    expected, _ = attention(
        Layer(), query, key, value, None, cache=WholeCache(), cu_seq_lens_k=bounds, **common
    )
    assert torch.equal(got, expected)
    ordered = kind != WINDOWED and (q_len == 1 or query_by_query)
    assert (cache.num_read > KEYS) == ordered  # padded keys were read
    assert indices[0] is read
