"""Answers with and without token ids or log-probabilities, and groups that share them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recorded import record, small_experiment

from detcheck.analysis import analyse
from detcheck.analysis.results import (
    CONFIDENT,
    NEAR_TIE,
    TIE,
    UNKNOWN,
)
from detcheck.completion import Completion
from detcheck.engines.scripted import Planted
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.rundir import Run
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer


def test_log_probabilities_may_differ_while_tokens_agree(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        return answer([1, 2], gaps=[2.0, 1.0 + (position == 3) * 1e-9])

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(4,), completions=12)
    group = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups[0]
    assert (group.distinct, group.logprobs_differ) == (1, 3)


def test_an_answer_without_log_probabilities(tmp_path: Path) -> None:
    engine = AnsweringEngine(lambda trial, position: answer([1, 2 + (position > 1)]))
    group = analyse(record(tmp_path / "run", engine)).groups[0]
    assert (group.noise, group.logprobs_differ) == (None, None)
    assert group.flips == {TIE: 0, NEAR_TIE: 0, CONFIDENT: 0, UNKNOWN: 1}


def test_an_answer_without_token_ids_is_compared_by_character(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        return Completion("a coastal town" if position else "a \ud800 town", "stop")

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 4))
    group = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups[0]
    [divergence] = group.divergences
    assert (divergence.position, divergence.context) == (2, "a ")
    assert (divergence.reference_piece, divergence.piece) == ("\ud800 town", "coastal town")


def test_answers_with_and_without_token_ids_are_compared_as_text(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        return answer([1, 2]) if position else Completion("1 3 ", "stop")

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 4))
    group = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups[0]
    assert [divergence.position for divergence in group.divergences] == [2]
    assert group.tree is not None
    assert (group.tree.text, [child.text for child in group.tree.children]) == (
        "1 ",
        ["2 ", "3 "],
    )


def test_kernels_that_share_a_variant_count_their_own(planted_run: Callable[..., Run]) -> None:
    run = planted_run(Planted(5, 3, kernels=BATCH_INVARIANT))
    stock, invariant = analyse(run).groups
    assert len(run.variants) == 2
    assert (stock.distinct, stock.completions) == (1, 64)
    assert (invariant.distinct, invariant.completions) == (2, 64)


def test_prompts_are_kept_apart_and_in_order(planted_run: Callable[..., Run]) -> None:
    analysis = analyse(
        planted_run(
            Planted(5, 3, kernels=BATCH_INVARIANT),
            prompts=("One?", "Two?"),
            kernels=(BATCH_INVARIANT, STOCK),
        )
    )
    named = [(group.prompt, group.kernels, group.distinct) for group in analysis.groups]
    assert named == [
        ("One?", STOCK, 1),
        ("One?", BATCH_INVARIANT, 2),
        ("Two?", STOCK, 1),
        ("Two?", BATCH_INVARIANT, 2),
    ]
    assert analysis.total_agreement_rate == {STOCK: 1.0, BATCH_INVARIANT: 0.0}
    with pytest.raises(KeyError):
        analysis.group(2, STOCK)
