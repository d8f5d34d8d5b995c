"""Logits to tokens: the best two, the same whatever the batch; and tokens to text."""

from __future__ import annotations

import pytest
import torch
from transformers import ByT5Tokenizer

from detcheck.engines.decoding import Detokenizer, rank
from detcheck.models import LoadedModel


@pytest.mark.parametrize("vocabulary", [49152, 1000, 65, 64, 2])
def test_rank_finds_the_best_two(vocabulary: int) -> None:
    scores = torch.randn(7, vocabulary)
    before = scores.clone()
    ranked = rank(scores)
    values, indices = scores.topk(2)
    assert torch.equal(ranked.best, indices[:, 0])
    assert torch.equal(ranked.runner_up, indices[:, 1])
    assert torch.equal(ranked.gap, values[:, 0] - values[:, 1])
    expected = scores.double().log_softmax(-1).amax(-1).float()
    torch.testing.assert_close(ranked.logprob, expected)
    assert torch.equal(scores, before), "the caller's scores must be left as they were"


def test_the_lowest_index_wins_a_tie() -> None:
    scores = torch.zeros(1, 500)
    scores[0, [70, 300, 301]] = 5.0
    ranked = rank(scores)
    assert (ranked.best.item(), ranked.runner_up.item(), ranked.gap.item()) == (70, 300, 0.0)


def test_a_row_is_ranked_the_same_alone_and_in_any_batch() -> None:
    """A plain sum over the vocabulary would differ: PyTorch splits a single long row in two."""
    scores = torch.randn(33, 49152)
    whole = rank(scores)
    for row in range(33):
        alone = rank(scores[row : row + 1])
        assert torch.equal(alone.logprob, whole.logprob[row : row + 1])
        assert torch.equal(alone.gap, whole.gap[row : row + 1])


TEXT = "A sea: ü, €, 🐟 and 日本."


def test_a_tokenizer_in_pure_python_is_decoded_byte_by_byte() -> None:
    """ByT5 has no fast backend; a character of several bytes ends with its last one."""
    tokenizer = ByT5Tokenizer()
    assert not hasattr(tokenizer, "backend_tokenizer")
    token_ids = tuple(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert len(token_ids) == len(TEXT.encode())
    text, ends = Detokenizer(tokenizer)(token_ids)
    assert text == TEXT
    assert ends == tuple(
        len(TEXT.encode()[:count].decode(errors="ignore")) for count in range(1, len(token_ids) + 1)
    )


def test_both_ways_to_decode_agree(tiny_model: LoadedModel) -> None:
    """The same tokens by the stream decoder and prefix by prefix, special tokens left out."""
    detokenizer = Detokenizer(tiny_model.tokenizer)
    token_ids = (*tiny_model.tokenizer(TEXT)["input_ids"], 1)
    text, ends = detokenizer(token_ids)
    assert text == TEXT
    assert ends[-1] == ends[-2] == len(TEXT)
    assert list(detokenizer._by_prefixes(token_ids, text)) == list(ends)


def test_no_tokens_are_no_text(tiny_model: LoadedModel) -> None:
    assert Detokenizer(tiny_model.tokenizer)(()) == ("", ())
    assert Detokenizer(ByT5Tokenizer())(()) == ("", ())
