"""Sampling: the seed and the row decide the token, never the batch; and who may be drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import conditions_of, settled
from sweeps import few

from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.sampling import FURTHEST, Filters, Sampler
from detcheck.engines.static import StaticEngine
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import plan_trials

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}
FILTERS = {
    "top-k": Filters(top_k=40),
    "top-p": Filters(top_p=0.9),
    "min-p": Filters(min_p=0.05),
    "all": Filters(top_k=200, top_p=0.95, min_p=0.001),
}


def logits(rows: int, vocabulary: int = 49152) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, vocabulary, generator=generator) * 3


# The seed and the position


def test_a_draw_depends_on_seed_and_position_only() -> None:
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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    own = torch.tensor([[2.0, 1.0, 0.0]])
    every = [(0, position) for position in range(4000)]
    draws = Sampler(temperature).choose(own.expand(4000, -1), every).best
    share = torch.bincount(draws, minlength=3) / 4000
    torch.testing.assert_close(share, (own[0] / temperature).softmax(-1), atol=0.03, rtol=0)


def test_the_log_probability_is_of_the_models_own_logits() -> None:
    """At temperature 1 and before any filter, whichever token is drawn."""
    scores = logits(5, 3000)
    for sampler in (Sampler(0.0), Sampler(0.7), Sampler(2.0, Filters(top_k=50, top_p=0.5))):
        chosen = sampler.choose(scores, [(1, position) for position in range(5)])
        expected = scores.double().log_softmax(-1)[range(5), chosen.best].float()
        torch.testing.assert_close(chosen.logprob, expected, atol=1e-5, rtol=1e-5)


# Who may be drawn


def by_definition(scores: torch.Tensor, temperature: float, filters: Filters) -> list[int]:
    """The candidates written out token by token."""
    scaled = (scores.double() / temperature).tolist()
    order = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if filters.top_k:
        order = order[: filters.top_k]
    weights = [torch.tensor(scaled[token] - scaled[order[0]]).exp().item() for token in order]
    whole, mass, kept = sum(weights), 0.0, []
    for token, weight in zip(order, weights, strict=True):
        if mass / whole < filters.top_p and weight >= filters.min_p:
            kept.append(token)
        mass += weight
    return kept


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_candidates_are_those_of_the_definition(filters: Filters, temperature: float) -> None:
    for row in logits(4, 500):
        found = filters.candidates(row, temperature).tolist()
        assert found == by_definition(row, temperature, filters)
        assert 0 < len(found) < 500


def test_the_lowest_index_is_kept_among_equals() -> None:
    scores = torch.zeros(100)
    scores[7] = 1.0
    assert Filters(top_k=3).candidates(scores, 1.0).tolist() == [7, 0, 1]
    assert Filters(top_p=0.04).candidates(scores, 1.0).tolist() == [7, 0, 1]
    assert Filters(min_p=1.0).candidates(scores, 1.0).tolist() == [7]


def test_no_filter_keeps_all() -> None:
    assert Filters().keep_all
    assert len(Filters().candidates(torch.randn(100), 1.0)) == 100
    assert Filters(top_k=500).candidates(torch.randn(100), 1.0).sort().values.tolist() == [
        *range(100)
    ]


@few("filters", FILTERS.values(), ids=FILTERS)
def test_candidates_and_draws_are_the_same_alone_and_in_a_batch(filters: Filters) -> None:
    scores = logits(17)
    draws = [(row, 3) for row in range(17)]
    sampler = Sampler(0.9, filters)
    whole = sampler.choose(scores, draws)
    for row in (0, 8, 16):
        alone = sampler.choose(scores[row : row + 1], draws[row : row + 1])
        for name in ("best", "runner_up", "gap", "logprob"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row]), name
        rolled = sampler.choose(scores.roll(5, 0), draws[-5:] + draws[:-5])
        assert rolled.best[(row + 5) % 17] == whole.best[row]
        assert int(whole.best[row]) in filters.candidates(scores[row], 0.9).tolist()


def test_only_candidates_are_drawn_and_in_proportion() -> None:
    own = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0]])
    every = [(0, position) for position in range(4000)]
    draws = Sampler(1.0, Filters(top_k=2)).choose(own.expand(4000, -1), every).best
    share = torch.bincount(draws, minlength=5) / 4000
    expected = torch.zeros(5)
    expected[[1, 2]] = own[0, [1, 2]].softmax(-1)
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)


def test_a_single_candidate_has_a_finite_gap_and_another_runner_up() -> None:
    """A gap is written to JSON, which knows no infinity."""
    scores = logits(3, 400)
    chosen = Sampler(1.0, Filters(top_k=1)).choose(scores, [(0, 0), (1, 0), (2, 0)])
    assert torch.equal(chosen.best, scores.argmax(-1))
    assert chosen.gap.tolist() == [FURTHEST] * 3
    assert not (chosen.runner_up == chosen.best).any()


# Through the engines


def sampled(loaded: LoadedModel, name: str, **fields: Any) -> dict[int, set[Any]]:
    """Every completion of every trial, by seed."""
    defaults: dict[str, Any] = {
        "prompts": ("What is the sea?",), "kernels": ("batch-invariant",), "temperature": 1.0,
        "batch_sizes": (1, 4), "completions": 9, "max_new_tokens": 6, "traffic": "mixed",
    }  # fmt: skip
    experiment = settled(**defaults | fields)
    engine = ENGINES[name](loaded, experiment, InProcess(engine=name))
    found: dict[int, set[Any]] = {}
    for condition in conditions_of(experiment):
        for trial in plan_trials(experiment, condition):
            for _, completion in engine.run_trial(trial).completions:
                found.setdefault(condition.seed, set()).add(
                    (completion.token_ids, completion.logprob_digest)
                )
    return found


@few("name", ENGINES)
@few("fields", [{}, {"top_p": 0.9, "top_k": 50, "min_p": 0.01}])
def test_equal_seeds_give_equal_answers_under_every_load_and_different_seeds_differ(
    tiny_model: LoadedModel, name: str, fields: dict[str, Any]
) -> None:
    found = sampled(tiny_model, name, seeds=(0, 1, 2), **fields)
    assert [len(answers) for answers in found.values()] == [1, 1, 1]
    assert len(set.union(*found.values())) == 3


@pytest.mark.sweep
@few("name", ENGINES)
def test_a_filter_of_one_token_is_greedy_whatever_the_seed(
    tiny_model: LoadedModel, name: str
) -> None:
    found = sampled(tiny_model, name, seeds=(0, 1), top_k=1)
    greedy = sampled(tiny_model, name, temperature=0.0)
    tokens = {token_ids for answers in found.values() for token_ids, _ in answers}
    assert tokens == {token_ids for token_ids, _ in greedy[0]}


@pytest.mark.sweep
def test_a_seed_that_is_lost_would_be_seen(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: one default seed clones all samples of a group."""
    stock = Sampler.choose

    def cloned(self: Sampler, scores: Any, draws: Any) -> Any:
        return stock(self, scores, [(0, position) for _, position in draws])

    monkeypatch.setattr(Sampler, "choose", cloned)
    found = sampled(tiny_model, "static", seeds=(0, 1, 2))
    assert len(set.union(*found.values())) == 1
