"""Logits to tokens: the best two, the same whatever the batch, and seeded sampling."""

from __future__ import annotations

import pytest
import torch

from detcheck.engines.decoding import Sampler, rank


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


def test_sampling_depends_on_seed_and_position_only() -> None:
    scores = torch.randn(1, 1000).expand(6, -1)
    sampler = Sampler(temperature=1.0)
    same_position = sampler.choose(scores, [(3, 4)] * 6).best
    assert len(set(same_position.tolist())) == 1
    positions = sampler.choose(scores, [(3, position) for position in range(6)]).best
    assert positions[4] == same_position[0]
    assert len(set(positions.tolist())) > 1
    seeds = sampler.choose(scores, [(seed, 4) for seed in range(6)]).best
    assert seeds[3] == same_position[0]
    assert len(set(seeds.tolist())) > 1


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    sampler = Sampler(temperature=1.0)
    every = [(0, position) for position in range(4000)]
    draws = sampler.choose(logits.expand(4000, -1), every).best
    share = torch.bincount(draws, minlength=3) / 4000
    torch.testing.assert_close(share, logits[0].softmax(-1), atol=0.03, rtol=0)
