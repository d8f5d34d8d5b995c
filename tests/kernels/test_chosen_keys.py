"""Layers whose queries choose their keys, as the indexers of DeepSeek-V3.2 do."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from detcheck.kernels import attention as module
from detcheck.kernels.attention import attention
from detcheck.kernels.coverage import level_held
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.settings import FULLY_INVARIANT
from detcheck.models.tiny import config_of, shrunk, tiny_model

HEADS, DIM = 4, 32
NEW_TOKENS = 6


class Layer(torch.nn.Module):
    layer_idx = 0
    is_causal = True

    def __init__(self, *, chooses: bool = True):
        super().__init__()
        self.config = SimpleNamespace(index_topk=2 if chooses else None)


def states(
    seed: int, num_keys: int, num_queries: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (num_queries, num_keys, num_keys)
    query, key, value = (torch.randn(1, HEADS, n, DIM, generator=generator) for n in lengths)
    return query, key, value


def sees(keys: Iterable[int], num_keys: int = 20) -> torch.Tensor:
    """The mask of one query."""
    mask = torch.zeros(1, 1, 1, num_keys, dtype=torch.bool)
    mask[..., list(keys)] = True
    return mask


PROBE = sees(range(3, 9))
"""The chosen keys lie beside each other, and the query's own is not among them."""


def beside_another() -> bool:
    """True if the probed query gives beside another one what it gives alone."""
    probe, other = states(1, 20), states(2, 20)
    alone, _ = attention(Layer(), *probe, PROBE)
    query, key, value = (torch.cat(parts) for parts in zip(probe, other, strict=True))
    mask = torch.cat((PROBE, sees([2, 5, 19])))
    together, _ = attention(Layer(), query, key, value, mask)
    return torch.equal(together[:1], alone)


def test_a_row_does_not_depend_on_the_last_key_that_another_row_sees() -> None:
    assert beside_another()


def test_keys_that_are_cut_for_the_batch_alone_are_seen_to_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin."""

    def split(*parts: torch.Tensor) -> Any:
        return zip(*(part.split(1) for part in parts), strict=True)

    monkeypatch.setattr(module, "rows_alone", split)
    assert not beside_another()


def chosen_mask(length: int) -> torch.Tensor:
    """Each query sees the first two keys: in a mask, padding behind a request of two tokens."""
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:, 2:] = False
    return mask[None, None]


@pytest.mark.parametrize("query_by_query", [False, True])
def test_queries_that_do_not_choose_themselves_are_computed(query_by_query: bool) -> None:
    query, key, value = states(3, 9, 9)
    mask = chosen_mask(9)
    wanted = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    got, _ = attention(Layer(), query, key, value, mask, query_by_query=query_by_query)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    last, _ = attention(Layer(), query[:, :, -1:], key, value, mask[:, :, -1:])
    assert torch.equal(last, got[:, -1:])


def test_in_another_layer_they_are_padding() -> None:
    """The twin: padding on the right is left out."""
    query, key, value = states(3, 9, 9)
    got, _ = attention(Layer(chooses=False), query, key, value, chosen_mask(9))
    assert not bool(got[:, 2:].any())


def scores(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits (rows, new tokens, vocabulary) of requests, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    out = model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=NEW_TOKENS, pad_token_id=0,
        min_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(out.logits, dim=1)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index_topk", [1, 2, 5])
@pytest.mark.parametrize("name", ["deepseek_v32", "hy_v4", "axk2"])
def test_a_request_does_not_depend_on_what_others_choose(name: str, index_topk: int) -> None:
    config = shrunk(config_of(name))
    config.index_topk = index_topk
    model = tiny_model(config)
    requests = [[*range(5, 5 + length)] for length in (9, 14, 3, 11)]
    with batch_invariant(), torch.no_grad():
        together = scores(model, requests)
        for row, request in zip(together, requests, strict=True):
            assert torch.equal(row, scores(model, [request])[0])
    assert level_held(model) == FULLY_INVARIANT
