"""Seeds are wanted samples: what the system adds is found within each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import record, small_experiment

from detcheck.analysis import Analysis, analyse
from detcheck.analysis.answers import answer_stability
from detcheck.analysis.compare import compare
from detcheck.analysis.noise import SAFETY
from detcheck.analysis.results import CONFIDENT, NEAR_TIE, UNKNOWN
from detcheck.analysis.statistics import zero_upper_bound
from detcheck.analysis.summary import summary_rows
from detcheck.completion import Completion
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.parsers import answer_parser
from detcheck.targets import Served
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer

SEEDS = (3, 5, 8)
Respond = Callable[[Trial, int], Completion]


def analysed(path: Path, respond: Respond, **fields: object) -> Analysis:
    """`respond` answers twelve requests of each seed, alone and in batches of four."""
    defaults = {
        "kernels": (STOCK,),
        "batch_sizes": (1, 4),
        "completions": 12,
        "temperature": 0.7,
        "seeds": SEEDS,
    }
    return analyse(record(path, AnsweringEngine(respond), small_experiment(**(defaults | fields))))


def sample(seed: int, change: int | None = None, moved: float = 0.0) -> Completion:
    """The wanted answer to a seed; from token `change` on, another one that was not asked for."""
    token_ids = [100 * seed + at for at in range(24)]
    gaps = [2.0 + moved] * 24
    if change is not None:
        token_ids[change:] = [10_000 + token for token in token_ids[change:]]
    for at in (6, 10):
        gaps[at] = 0.05
    return answer(token_ids, gaps=gaps, rows=4)


def wanted(trial: Trial, position: int) -> Completion:
    """Each seed gives its own answer, whatever the load."""
    return sample(trial.condition.seed)


def changed_by_load(trial: Trial, position: int) -> Completion:
    """In a batch seed 3 keeps its answer, seed 5 gets a second, seed 8 a second and a third."""
    seed, moved = trial.condition.seed, 0.1 * (trial.condition.batch_size > 1)
    if trial.condition.batch_size == 1 or seed == 3 or position < 2:
        return sample(seed, None, moved)
    return sample(seed, 10 if seed == 8 and position == 3 else 6, moved)


def test_what_the_seeds_asked_for_is_not_variety_of_the_system(tmp_path: Path) -> None:
    [group] = analysed(tmp_path / "run", wanted).groups
    assert group.seeds == SEEDS
    assert (group.distinct, group.distinct_within_seed) == (3, 1)
    assert (group.answers_from_seeds, group.answers_from_system) == (3, 0)
    assert (group.divergences, group.branchings, group.first_divergence) == ((), (), None)
    assert set(group.flips.values()) == {0}
    assert all(variant.is_reference for variant in group.variants)
    assert {variant.seeds for variant in group.variants} == {(3,), (5,), (8,)}
    assert group.tree is not None
    assert group.tree.variants == 3


def test_what_the_system_added_is_found_within_each_seed(tmp_path: Path) -> None:
    [group] = analysed(tmp_path / "run", changed_by_load).groups
    assert [split.distinct for split in group.by_seed] == [1, 2, 3]
    assert (group.distinct, group.distinct_within_seed) == (6, 3)
    assert (group.answers_from_seeds, group.answers_from_system) == (3, 3)
    assert [(d.seed, d.position) for d in group.divergences] == [(5, 6), (8, 6), (8, 10)]
    assert group.first_divergence == 6
    assert [(b.seed, b.position) for b in group.branchings] == [(5, 6), (8, 6), (8, 10)]
    assert sum(group.flips.values()) == group.answers_from_system
    for split in group.by_seed:
        assert split.reference is not None
        assert split.reference.batch_sizes == (1, 4)
        assert sum(variant.count for variant in split.variants) == split.completions == 12
        assert [variant.rank for variant in split.variants] == list(range(1, split.distinct + 1))
    differing = [variant for variant in group.variants if not variant.is_reference]
    assert sorted(variant.first_divergence or 0 for variant in differing) == [6, 6, 10]
    assert [variant.rank for variant in group.variants] == list(range(1, 7))


def test_rows_are_over_seeds_and_by_condition(tmp_path: Path) -> None:
    analysis = analysed(tmp_path / "run", changed_by_load)
    [group] = analysis.groups
    one, four = group.by_batch_size
    assert (one.batch_size, one.distinct, one.distinct_within_seed) == (1, 3, 1)
    assert (four.batch_size, four.distinct, four.distinct_within_seed) == (4, 6, 3)
    assert (one.seed, four.seed, one.differ_from_reference) == (None, None, 0)
    assert [(row.batch_size, row.seed) for row in group.by_condition] == [
        (size, seed) for size in (1, 4) for seed in SEEDS
    ]
    for row, name in ((one, "completions"), (four, "completions"), (four, "failed")):
        parts = [getattr(r, name) for r in group.by_condition if r.batch_size == row.batch_size]
        assert getattr(row, name) == sum(parts)
    changed = [r.differ_from_reference for r in group.by_condition if r.batch_size == 4]
    assert changed[0] == 0 < changed[1] == changed[2]
    assert four.differ_from_reference == sum(changed)
    frame = analysis.frame()
    assert frame["condition"].tolist()[:2] == ["p0/stock/b1/s3", "p0/stock/b1/s5"]
    assert frame["seed"].tolist() == [3, 5, 8] * 2
    assert set(frame["condition"]) == {record.condition_id for record in analysis.run.conditions}


def test_tables_name_the_seeds(tmp_path: Path) -> None:
    analysis = analysed(tmp_path / "run", changed_by_load)
    variants, branchings = analysis.variants_frame(), analysis.branchings_frame()
    assert sorted(variants["seeds"]) == ["3", "5", "5", "8", "8", "8"]
    assert variants["is_reference"].sum() == 3
    assert variants["flip"].notna().sum() == len(branchings) == 3
    assert branchings["seed"].tolist() == [5, 8, 8]
    cloned = analysed(tmp_path / "cloned", lambda trial, position: sample(1))
    assert cloned.variants_frame()["seeds"].tolist() == ["3 5 8"]


def test_comparisons_and_bound_are_over_all_seeds(tmp_path: Path) -> None:
    one_seed = analysed(tmp_path / "one", wanted, seeds=(3,)).groups[0]
    group = analysed(tmp_path / "run", wanted).groups[0]
    assert group.comparisons == 3 * one_seed.comparisons > 0
    assert group.statistics is not None
    assert group.statistics.differ_upper_bound == zero_upper_bound(group.comparisons)
    changed = analysed(tmp_path / "changed", changed_by_load).groups[0]
    assert changed.statistics is not None
    assert changed.statistics.differ_upper_bound is None
    assert changed.statistics.differing > 0


def test_other_seeds_alone_do_not_make_a_control_alive(tmp_path: Path) -> None:
    assert analysed(tmp_path / "run", wanted).groups[0].alive is False
    assert analysed(tmp_path / "changed", changed_by_load).groups[0].alive is True


def test_one_bit_within_a_seed_makes_it_alive(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        loaded = trial.condition.seed == 8 and trial.condition.batch_size > 1
        return sample(trial.condition.seed, None, 1e-9 * loaded)

    [group] = analysed(tmp_path / "run", respond).groups
    assert group.logprobs_differ == group.by_batch_size[1].completions / 3
    assert (group.distinct_within_seed, group.alive) == (1, True)


def test_noise_is_pooled_over_seeds(tmp_path: Path) -> None:
    """Seed 3 moves by 0.5 and keeps its answer; seed 5 diverges at its first token."""

    def respond(trial: Trial, position: int) -> Completion:
        seed, loaded = trial.condition.seed, trial.condition.batch_size > 1
        if seed == 3:
            return sample(seed, None, 0.5 * loaded)
        return answer([1 if loaded else 2, *range(10, 33)], gaps=[0.3] * 24)

    [group] = analysed(tmp_path / "run", respond, seeds=(3, 5)).groups
    assert group.noise == SAFETY * 0.5
    assert group.flips[NEAR_TIE] == 1


def test_seeds_that_were_cloned_show(tmp_path: Path) -> None:
    [group] = analysed(tmp_path / "run", lambda trial, position: sample(1)).groups
    assert (len(group.seeds), group.answers_from_seeds, group.distinct) == (3, 1, 1)
    [variant] = group.variants
    assert variant.seeds == SEEDS
    assert group.statistics is not None
    assert group.statistics.differ_upper_bound is not None


def test_an_answer_may_be_wanted_by_one_seed_and_added_to_another(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        seed, loaded = trial.condition.seed, trial.condition.batch_size > 1
        return sample(3 if seed == 5 and loaded else seed)

    [group] = analysed(tmp_path / "run", respond, seeds=(3, 5)).groups
    assert (group.distinct, group.distinct_within_seed) == (2, 2)
    assert (group.answers_from_seeds, group.answers_from_system) == (2, 1)
    assert [(d.seed, d.position) for d in group.divergences] == [(5, 0)]
    assert group.reference is not None
    assert all(v.is_reference and v.first_divergence is None for v in group.variants)


def test_total_agreement_is_within_seeds(tmp_path: Path) -> None:
    assert analysed(tmp_path / "run", wanted).total_agreement_rate == {STOCK: 1.0}
    assert analysed(tmp_path / "changed", changed_by_load).total_agreement_rate == {STOCK: 0.0}


def test_the_summary_splits_the_variety(tmp_path: Path) -> None:
    [row] = summary_rows(analysed(tmp_path / "run", changed_by_load))
    assert (row["seeds"], row["distinct"], row["distinct_within_seed"]) == (3, 6, 3)


def test_a_seed_without_completions_is_empty(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        if trial.condition.seed == 5:
            return Completion("", "error", error="gone")
        return wanted(trial, position)

    [group] = analysed(tmp_path / "run", respond).groups
    assert [split.completions for split in group.by_seed] == [12, 0, 12]
    assert group.by_seed[1].reference is None
    assert (group.distinct, group.distinct_within_seed, group.answers_from_seeds) == (2, 1, 2)


def test_cost_is_compared_seed_by_seed(tmp_path: Path) -> None:
    """Batch-invariant takes as many times stock's time as its seed says; stock's own varies too."""

    def seconds(trial: Trial) -> float:
        seed = trial.condition.seed
        return seed * (seed if trial.condition.kernels == BATCH_INVARIANT else 1)

    experiment = small_experiment(
        batch_sizes=(4,),
        completions=4,
        temperature=0.7,
        seeds=SEEDS,
        kernels=(STOCK, BATCH_INVARIANT),
    )
    run = record(tmp_path / "run", AnsweringEngine(wanted, seconds), experiment)
    group = analyse(run).group(0, BATCH_INVARIANT)
    assert [row.relative_cost for row in group.by_condition] == pytest.approx(SEEDS)
    assert group.relative_cost == pytest.approx(sum(s * s for s in SEEDS) / sum(SEEDS))


def test_parsed_answers_are_compared_within_a_seed(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        flips = trial.requests[position].prompt == "Two?" and trial.condition.batch_size > 1
        return Completion(f"it is {trial.condition.seed + flips}", "stop")

    analysis = analysed(tmp_path / "run", respond, prompts=("One?", "Two?"))
    [stock] = answer_stability(analysis, answer_parser("number"))
    assert [item.flips for item in stock.items] == [False, True]
    assert (stock.raw_agreement, stock.parsed_agreement) == (0.5, 0.5)


def test_runs_are_compared_seed_by_seed(tmp_path: Path) -> None:
    same = analysed(tmp_path / "a", wanted)
    changed = analysed(tmp_path / "b", changed_by_load)
    found = compare(same, analysed(tmp_path / "c", wanted))
    assert [pair.agreement for pair in (*found.pairs, *found.conditions)] == [1, 1, 1]
    assert found.pairs[0].shared == 3
    found = compare(same, changed)
    by_size = {pair.batch_size: pair.agreement for pair in found.conditions}
    assert by_size[1] == 1
    assert 0 < (by_size[4] or 0) < 1
    assert found.pairs[0].references_equal
    overlap = compare(same, analysed(tmp_path / "d", wanted, seeds=(5, 9)))
    assert overlap.pairs[0].agreement == 1
    apart = compare(same, analysed(tmp_path / "e", wanted, seeds=(6, 9)))
    assert apart.pairs[0].agreement == 0


def test_a_reference_that_changed_under_a_later_seed_is_found(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        seed = trial.condition.seed
        return sample(seed, 7 if seed == 8 else None)

    [pair] = compare(analysed(tmp_path / "a", wanted), analysed(tmp_path / "b", respond)).pairs
    assert pair.divergence is not None
    assert pair.divergence.position == 7


@pytest.mark.parametrize(("temperature", "kind"), [(0.0, CONFIDENT), (0.7, UNKNOWN)])
def test_log_probabilities_of_a_server_explain_nothing_that_was_drawn(
    tmp_path: Path, temperature: float, kind: str
) -> None:
    """Above temperature 0 they are from before the draw: a wide gap is no sign of a bug."""

    def respond(trial: Trial, position: int) -> Completion:
        found = sample(3, 6 if trial.condition.batch_size > 1 else None)
        assert found.top_two is not None
        return replace(found, top_two=replace(found.top_two, gaps=(5.0,) * 24))

    target = Served(endpoints=("http://one/v1",))
    experiment = small_experiment(
        endpoints=target.endpoints,
        batch_sizes=(1, 4),
        completions=12,
        temperature=temperature,
    )
    run = record(tmp_path / "run", AnsweringEngine(respond), experiment, target=target)
    [group] = analyse(run).groups
    assert group.flips[kind] == 1
