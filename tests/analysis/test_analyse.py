"""What is planted is reported, and nothing is reported if nothing was planted."""

from __future__ import annotations

from collections import Counter
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
    Group,
    VariantCount,
)
from detcheck.completion import Completion
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import WORDS, Planted, ScriptedEngine
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.rundir import Run, load
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer

EIGHTY_VARIANTS = Path(__file__).parents[2] / "results" / "eighty_variants"


class Remembering(ScriptedEngine):
    """Remembers what it answered, so that a test can count for itself."""

    def __init__(self, *planted: Planted, noise: float = 0.0):
        super().__init__(planted, noise=noise)
        self.answers: Counter[tuple[str, int, str]] = Counter()

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        result = super().run_trial(trial, on_tokens)
        condition = trial.condition
        self.answers.update(
            (condition.kernels, condition.batch_size, completion.fingerprint)
            for _, completion in result.completions
        )
        return result


def test_without_a_plant_there_is_one_answer(planted_run: Callable[..., Run]) -> None:
    analysis = analyse(planted_run())
    assert [group.kernels for group in analysis.groups] == [STOCK, BATCH_INVARIANT]
    for group in analysis.groups:
        assert (group.distinct, group.most_common, group.completions) == (1, 64, 64)
        assert (group.divergences, group.first_divergence) == ((), None)
        assert group.flips == {TIE: 0, NEAR_TIE: 0, CONFIDENT: 0, UNKNOWN: 0}
        assert (group.noise, group.logprobs_differ) == (0.0, 0)
        assert group.tree is not None
        assert not group.tree.children
    assert analysis.total_agreement_rate == {STOCK: 1.0, BATCH_INVARIANT: 1.0}


def test_a_planted_divergence_is_found_where_it_was_planted(
    planted_run: Callable[..., Run],
) -> None:
    group = analyse(planted_run(Planted(9, 2, min_batch_size=4))).group(0, STOCK)
    [divergence] = group.divergences
    assert divergence.position == group.first_divergence == 9
    assert divergence.piece.startswith(WORDS[2] + " ")
    assert not divergence.reference_piece.startswith(WORDS[2] + " ")
    assert divergence.flip.runner_up_won is True
    assert group.tree is not None
    assert group.tree.stop == 9
    assert [child.count for child in group.tree.children] == [
        count.count for count in group.variants
    ]


def test_counts_are_those_of_the_engine(tmp_path: Path) -> None:
    engine = Remembering(Planted(5, 3, rate=0.3), Planted(11, 1, rate=0.2, min_batch_size=8))
    analysis = analyse(record(tmp_path / "run", engine, small_experiment(completions=200)))
    for group in analysis.groups:
        expected: Counter[str] = Counter()
        sizes: dict[str, set[int]] = {}
        for (kernels, batch_size, fingerprint), count in engine.answers.items():
            if kernels == group.kernels:
                expected[fingerprint] += count
                sizes.setdefault(fingerprint, set()).add(batch_size)
        assert {v.variant.fingerprint: v.count for v in group.variants} == expected
        assert {v.variant.fingerprint: set(v.batch_sizes) for v in group.variants} == sizes
        assert [v.rank for v in group.variants] == list(range(1, group.distinct + 1))
        counts = [v.count for v in group.variants]
        assert counts == sorted(counts, reverse=True)
        assert sum(v.share for v in group.variants) == pytest.approx(1.0)
    assert analysis.group(0, STOCK).distinct == 4
    assert analysis.group(0, BATCH_INVARIANT).distinct == 1


@pytest.mark.parametrize(
    ("gap", "noise", "kind"),
    [(0.0, 0.0, TIE), (0.05, 0.1, NEAR_TIE), (1.5, 0.1, CONFIDENT), (0.05, 0.0, CONFIDENT)],
)
def test_the_kind_of_a_flip_is_judged_by_the_noise_of_the_run(
    planted_run: Callable[..., Run], gap: float, noise: float, kind: str
) -> None:
    run = planted_run(Planted(9, 2, rate=0.5, gap=gap), engine={"noise": noise})
    group = analyse(run).group(0, STOCK)
    assert {name: count for name, count in group.flips.items() if count} == {kind: 1}
    assert group.noise is not None
    # Two gaps within ±noise of each other: at most 2 noise apart, and SAFETY times that.
    assert noise <= group.noise <= 4 * noise
    assert group.divergences[0].flip.reference_gap == pytest.approx(gap)


def test_a_tie_does_not_hide_a_gap_beyond_the_noise(tmp_path: Path) -> None:
    """Alone the two best are equal; in a batch the other one wins by 9 nats, noise 0.2."""

    def respond(trial: Trial, position: int) -> Completion:
        loaded = trial.condition.batch_size > 1
        gaps = [2.0 + 0.1 * loaded] * 24
        gaps[9] = 9.0 * loaded
        return answer([*range(9), 100 if loaded else 9, *range(10, 24)], gaps=gaps)

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 8))
    [group] = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups
    [branching] = group.branchings
    assert group.noise == pytest.approx(0.2, rel=1e-6)
    assert branching.flip.kind == group.divergences[0].flip.kind == CONFIDENT
    assert branching.flip.gap == 9.0


def test_flips_count_branchings_and_completions_stand_beside_them(tmp_path: Path) -> None:
    """Two answers leave the reference at token 5 by a tie, and part from each other at 12.

    Counted by where they leave the reference, there would be two ties and no near tie.
    """

    def respond(trial: Trial, position: int) -> Completion:
        loaded = trial.condition.batch_size > 1
        token_ids, gaps = list(range(24)), [2.0 + 0.1 * loaded] * 24
        if loaded:
            token_ids[5:] = [100 + token for token in token_ids[5:]]
            gaps[12] = 0.15
            if position % 4 == 3:
                token_ids[12] = 200
        gaps[5] = 0.0
        return answer(token_ids, gaps=gaps)

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 4), completions=19)
    [group] = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups
    asked = {row.batch_size: row.completions for row in group.by_batch_size}
    assert asked == {1: 3, 4: 16}
    assert group.distinct == 3
    assert group.flips == {TIE: 1, NEAR_TIE: 1, CONFIDENT: 0, UNKNOWN: 0}
    # The less common branches: 3 of 19 completions at token 5, 4 of 16 at token 12.
    assert group.flip_completions == {TIE: 3, NEAR_TIE: 4, CONFIDENT: 0, UNKNOWN: 0}
    assert [(b.position, b.completions) for b in group.branchings] == [(5, 3), (12, 4)]
    assert [d.position for d in group.divergences] == [5, 5]


def test_the_headline_run_is_explained_branching_by_branching() -> None:
    """The committed run: as many branchings as answers but one, each a tie or a near tie."""
    analysis = analyse(load(EIGHTY_VARIANTS))
    stock = analysis.group(0, STOCK)
    assert sum(stock.flips.values()) == len(stock.branchings) == stock.distinct - 1
    assert stock.flips[CONFIDENT] == stock.flips[UNKNOWN] == 0
    assert stock.flips == independent_count(stock)
    assert stock.alive
    assert analysis.group(0, BATCH_INVARIANT).branchings == ()


def independent_count(group: Group) -> dict[str, int]:
    """Flips by kind, from the answers alone: every pair of branches by its most common answers."""
    kinds = dict.fromkeys((TIE, NEAR_TIE, CONFIDENT, UNKNOWN), 0)
    pending = [(list(group.variants), 0)]
    while pending:
        passing, position = pending.pop()
        branches: dict[int | None, list[VariantCount]] = {}
        for counted in passing:
            ids = counted.variant.token_ids
            assert ids is not None
            branches.setdefault(int(ids[position]) if position < len(ids) else None, []).append(
                counted
            )
        pending += [(branch, position + 1) for branch in branches.values() if len(branch) > 1]
        if len(branches) > 1:
            ordered = sorted(branches.values(), key=lambda branch: -sum(v.count for v in branch))
            gaps = [float(branch[0].variant.gaps[position]) for branch in ordered]
            for gap in gaps[1:]:
                beyond = max(gap, gaps[0]) > group.noise
                kinds[CONFIDENT if beyond else TIE if 0 in (gap, gaps[0]) else NEAR_TIE] += 1
    return kinds


@pytest.mark.parametrize(("temperature", "perturbed"), [(0.0, False), (0.7, True)])
def test_above_temperature_0_gaps_are_of_perturbed_scores(
    planted_run: Callable[..., Run], temperature: float, perturbed: bool
) -> None:
    analysis = analyse(planted_run(Planted(9, 2), temperature=temperature))
    assert analysis.gaps_perturbed is perturbed


def test_a_rare_fault_is_told_from_rounding(tmp_path: Path) -> None:
    """Rounding by 0.1 everywhere; near ties in a third; 3 % pick a word that was far behind.

    The faulty completions are off by nats well before they flip, which must not excuse them.
    """

    def respond(trial: Trial, position: int) -> Completion:
        kind = (trial.index * 7 + position * 3) % 33
        wobble = 0.1 * ((trial.index + position) % 5) / 5
        loaded = trial.condition.batch_size > 1
        faulty, near = loaded and kind == 0, loaded and kind % 3 == 1
        gaps = [2.0 + wobble + (4.0 if faulty and at > 10 else 0.0) for at in range(40)]
        token_ids = list(range(40))
        gaps[30] = 0.04
        if near:
            token_ids[30] = 31
        if faulty:
            token_ids[20], gaps[20] = 900, 3.0
        return answer(token_ids, gaps=gaps, rows=8)

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 8), completions=400)
    group = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups[0]
    kinds = {divergence.position: divergence.flip.kind for divergence in group.divergences}
    assert kinds == {20: CONFIDENT, 30: NEAR_TIE}
    assert {d.position: d.flip.runner_up_won for d in group.divergences} == {20: False, 30: True}
    faulty = next(d for d in group.divergences if d.position == 20)
    assert 0 < faulty.count / group.completions < 0.05


def test_the_reference_is_the_answer_of_the_smallest_batch(
    planted_run: Callable[..., Run],
) -> None:
    group = analyse(planted_run(Planted(3, 1, min_batch_size=2))).group(0, STOCK)
    assert group.reference is not None
    assert group.reference.batch_sizes == (1,)
    assert group.reference.rank == 2
    assert group.reference.first_divergence is None
    assert [v.first_divergence for v in group.variants] == [3, None]


def test_of_equally_common_answers_the_first_seen_is_the_reference(tmp_path: Path) -> None:
    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(4,), completions=8)
    engine = AnsweringEngine(lambda trial, position: answer([9 - position // 2]))
    group = analyse(record(tmp_path / "run", engine, experiment)).groups[0]
    assert [(v.variant.text, v.count, v.is_reference) for v in group.variants] == [
        ("9 ", 4, True),
        ("8 ", 4, False),
    ]


def test_if_the_smallest_batch_failed_the_next_gives_the_reference(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        if trial.condition.batch_size == 1:
            return Completion("", "error", error="gone")
        return answer([1, trial.condition.batch_size])

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 4, 8))
    group = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment)).groups[0]
    assert group.reference is not None
    assert group.reference.variant.text == "1 4 "
    assert group.failed == group.by_batch_size[0].failed == group.by_batch_size[0].asked
    assert group.by_batch_size[0].distinct == group.by_batch_size[0].most_common == 0


def test_failures_are_counted_and_are_no_answers(planted_run: Callable[..., Run]) -> None:
    group = analyse(planted_run(engine={"fail_rate": 0.25})).group(0, STOCK)
    assert group.completions + group.failed == group.asked == 64
    assert group.failed > 0
    assert group.distinct == 1
    assert sum(row.failed for row in group.by_batch_size) == group.failed


def test_before_anything_came_back_a_group_is_empty(tmp_path: Path) -> None:
    analysis = analyse(record(tmp_path / "run", limit=0))
    group = analysis.group(0, STOCK)
    assert (group.completions, group.distinct, group.most_common) == (0, 0, 0)
    assert (group.tree, group.statistics, group.noise, group.reference) == (None,) * 4
    assert (group.logprobs_differ, group.tokens_per_second, group.relative_cost) == (None,) * 3
    assert not group.evidence.observed
    assert len(group.by_batch_size) == 4
    assert analysis.total_agreement_rate == {}
