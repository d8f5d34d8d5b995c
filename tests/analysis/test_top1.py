"""Avg_Std@top1_prob: hand-made probabilities, and a run whose log-probabilities move."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from recorded import record, small_experiment

from detcheck.analysis import analyse
from detcheck.analysis.answers import answer_stability
from detcheck.analysis.top1 import top1_std, top1_stds
from detcheck.completion import Completion, TopTwo
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.traffic import Trial

from .answers import AnsweringEngine


def response(tokens: str, *probabilities: float) -> tuple[str, np.ndarray]:
    return tokens, np.array(probabilities)


def test_it_is_averaged_up_to_and_with_the_first_divergence() -> None:
    """Position 0: 0.5 and 0.7, standard deviation 0.2 / sqrt 2. Position 1: 0.4 twice. Position 2
    is after the divergence."""
    pair = [response("abc", 0.5, 0.4, 0.9), response("axc", 0.7, 0.4, 0.1)]
    assert top1_std(pair) == pytest.approx((0.2 / math.sqrt(2) + 0) / 2)


def test_without_a_divergence_all_positions_count() -> None:
    """Three responses: 0.1, 0.2, 0.3 have the standard deviation 0.1; the other position none."""
    three = [response("ab", value, 0.5) for value in (0.1, 0.2, 0.3)]
    assert top1_std(three) == pytest.approx((0.1 + 0) / 2)


def test_a_response_that_ends_earlier_ends_the_average() -> None:
    pair = [response("a", 0.5), response("ab", 0.7, 0.1)]
    assert top1_std(pair) == pytest.approx(0.2 / math.sqrt(2))


def test_it_is_unknown_without_two_responses_and_a_known_position() -> None:
    assert top1_std([response("a", 0.5)]) is None
    assert top1_std([response("a", 0.5), response("a", float("nan"))]) is None
    assert top1_std([response("", *()), response("a", 0.5)]) is None


def respond(trial: Trial, position: int) -> Completion:
    """Stock kernels give the token 0.5 alone and 0.25 in a batch of 8; the others always 0.5."""
    moved = trial.condition.kernels == STOCK and trial.condition.batch_size == 8
    top_two = TopTwo((1,), (0.5,), (math.log(0.25 if moved else 0.5),))
    return Completion("7", "stop", token_ids=(7,), token_ends=(1,), top_two=top_two)


def test_a_run_keeps_one_response_of_each_load(tmp_path: Path) -> None:
    experiment = small_experiment(batch_sizes=(1, 8), completions=16)
    analysis = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment))
    assert len(analysis.run.completions.top_logprobs) == len(analysis.run.conditions)
    stock, invariant = answer_stability(analysis, "number")
    assert (stock.kernels, invariant.kernels) == (STOCK, BATCH_INVARIANT)
    assert stock.top1_std == pytest.approx(0.25 / math.sqrt(2), rel=1e-6)
    assert invariant.top1_std == 0.0


def test_above_temperature_zero_the_best_tokens_are_not_known(tmp_path: Path) -> None:
    experiment = small_experiment(batch_sizes=(1, 8), completions=16, temperature=1.0)
    run = record(tmp_path / "run", AnsweringEngine(respond), experiment)
    assert (run.completions.top_logprobs, top1_stds(run)) == ({}, {})
