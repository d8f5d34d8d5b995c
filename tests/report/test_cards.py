"""The six cards and the evidence say what was planted, and doubt what was not shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from detcheck.analysis import analyse
from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE
from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, Analysis, VariantCount
from detcheck.evidence import KernelsProof
from detcheck.experiment import Experiment
from detcheck.gate import judge
from detcheck.report.card import BAD, GOOD, OPEN
from detcheck.report.cards import six_cards
from detcheck.report.checks import bounds, trust_checks
from detcheck.report.overview import overview
from detcheck.report.roles import compared_with_stock
from detcheck.report.tables import summary_table
from detcheck.report.text import flip_counts, number, of_kind
from detcheck.report.view import build_view, headline

from .sample import Script, drawn, write_run


def without_groups(analysis: Analysis, *kernels: str) -> Analysis:
    kept = tuple(group for group in analysis.groups if group.kernels not in kernels)
    return dataclasses.replace(analysis, groups=kept)


def change_groups(analysis: Analysis, kernels: str, **fields: object) -> Analysis:
    groups = tuple(
        dataclasses.replace(group, **fields) if group.kernels == kernels else group
        for group in analysis.groups
    )
    return dataclasses.replace(analysis, groups=groups)


def change_run(analysis: Analysis, **fields: object) -> Analysis:
    return dataclasses.replace(analysis, run=dataclasses.replace(analysis.run, **fields))


def emptied(analysis: Analysis) -> Analysis:
    """The analysis as if no completion had come back."""
    fields = {
        "completions": 0, "variants": (), "divergences": (), "branchings": (), "flips": {},
        "tree": None, "relative_cost": None, "statistics": None,
    }  # fmt: skip
    groups = tuple(dataclasses.replace(group, **fields) for group in analysis.groups)
    return dataclasses.replace(analysis, groups=groups)


def test_one_completion_alone_shows_nothing(tmp_path: Path) -> None:
    experiment = Experiment(prompts=("Hello",), completions=1, batch_sizes=(1,), kernels=("stock",))
    analysis = analyse(write_run(tmp_path / "one", [Script(["yes"])], experiment))
    _, where, why, *_ = six_cards(analysis)
    assert (where.answer, why.answer) == ("Unknown", "Unknown")
    assert where.detail == "1 completion came back: there is no other"
    said = {check.title: check.sentence for check in trust_checks(analysis)}
    assert "enough comparisons" not in said
    assert not any("0 of 0" in bound.sentence for bound in bounds(analysis.groups))
    assert any("No comparison was made" in reason for reason in judge(analysis).reasons)


def test_completions_that_did_not_come_back_are_not_called_the_same(silent: Analysis) -> None:
    assert six_cards(silent)[1].detail == "every completion is the same"
    some = change_groups(silent, "stock", failed=3)
    assert six_cards(some)[1].detail == "every completion that came back is the same"


def test_the_six_cards_of_a_run_that_diverged_and_was_cured(story: Analysis) -> None:
    stock, invariant = story.groups
    how_many, where, why, cure, cost, trust = six_cards(story)
    assert how_many.answer == f"{stock.distinct} distinct of 48"
    assert where.answer == f"from token {stock.first_divergence} on"
    ties, near = stock.flips[TIE], stock.flips[NEAR_TIE]
    assert why.answer == f"Rounding: {ties} ties, {near} near ties"
    assert (cure.answer, cure.mark) == ("Yes: 1 distinct of 48", GOOD)
    assert cure.detail.endswith(f"its answer is one of stock's {stock.distinct}")
    assert cost.answer == f"{invariant.relative_cost:.2f}× the time per token"
    assert trust.mark == GOOD
    assert headline(story) == (
        f"{stock.distinct} different answers to one question; 1 with batch-invariant kernels"
    )


def test_a_dead_control_shows_nothing(dead: Analysis) -> None:
    how_many, where, why, cure, _, trust = six_cards(dead)
    assert (how_many.answer, how_many.mark) == ("1 distinct of 48", OPEN)
    assert (where.answer, where.mark) == ("Nowhere", OPEN)
    assert why.answer == "Nothing to explain"
    assert (cure.answer, cure.mark) == ("Cannot be shown", OPEN)
    assert "not one bit of its log-probabilities moved" in cure.detail
    assert (trust.mark, trust.answer) == (BAD, "Not yet: control is not alive")
    assert headline(dead) == "Inconclusive: one answer in 48 completions, control is not alive"
    assert CONTROL_DID_NOT_DIVERGE[1:] in build_view(dead).prompts[0].reservation


def test_a_control_that_moves_by_a_bit_is_alive(silent: Analysis) -> None:
    how_many, _, _, cure, _, trust = six_cards(silent)
    assert (how_many.mark, trust.mark) == (GOOD, GOOD)
    assert (cure.answer, cure.mark) == ("Yes: 1 distinct of 48", GOOD)
    assert "stock has one answer too, and only its log-probabilities moved" in cure.detail
    assert headline(silent) == "One answer, whatever the load"
    moved = silent.groups[0].logprobs_differ
    assert f"only the log-probabilities of {moved} completions moved" in (
        build_view(silent).prompts[0].reservation
    )


def test_confident_flips_are_a_bug(several: Analysis) -> None:
    why = six_cards(several)[2]
    flips = sum(group.flips[CONFIDENT] for group in several.groups)
    assert flips > 0
    assert (why.answer, why.mark) == (f"A bug: {flips} confident", BAD)


def test_without_log_probabilities_it_is_unknown(texts: Analysis) -> None:
    _, where, why, cure, cost, _ = six_cards(texts)
    assert where.answer.startswith("from character ")
    assert (why.answer, why.mark) == ("Unknown", OPEN)
    assert (cure.answer, cost.answer) == ("Not tried", "Not measured")


def test_a_cure_that_fails(story: Analysis) -> None:
    stock = story.groups[0]
    uncured = change_groups(story, "batch-invariant", variants=stock.variants)
    cure = six_cards(uncured)[3]
    assert (cure.answer, cure.mark) == (f"No: {stock.distinct} distinct of 48", BAD)


def test_a_cure_without_a_control(story: Analysis) -> None:
    cure = six_cards(without_groups(story, "stock"))[3]
    assert (cure.answer, cure.mark) == ("1 distinct of 48", OPEN)
    assert cure.detail == "there is no stock control beside it"


def test_whether_both_kernels_answer_alike_is_reported(story: Analysis) -> None:
    stock, invariant = story.groups
    first, second, *_ = stock.variants

    def sentence(of_stock: Sequence[VariantCount], of_invariant: Sequence[VariantCount]) -> str:
        return compared_with_stock(
            dataclasses.replace(stock, variants=tuple(of_stock)),
            dataclasses.replace(invariant, variants=tuple(of_invariant)),
        )

    assert sentence([first], [first]) == "its answer is stock's too"
    assert sentence([first], [second]) == "its answer is not stock's"
    assert sentence(stock.variants, [second]) == f"its answer is one of stock's {stock.distinct}"
    assert sentence(stock.variants[1:], [first]) == (
        f"its answer is none of stock's {stock.distinct - 1}"
    )
    assert sentence([first], [first, second]) == "stock gave 1 of its 2 answers too"
    assert sentence([first], stock.variants[1:3]) == "stock gave none of its 2 answers too"
    assert sentence([first], []) == sentence([], [first]) == ""


def test_over_several_prompts_it_is_counted(several: Analysis) -> None:
    assert six_cards(several)[3].detail.endswith("on 3 of 3 prompts every answer is one of stock's")


def test_a_cure_whose_bits_differ_does_not_work(story: Analysis) -> None:
    noisy = change_groups(story, "batch-invariant", logprobs_differ=3)
    cure = six_cards(noisy)[3]
    assert (cure.answer, cure.mark) == ("No: 1 distinct of 48; bits differ", BAD)
    assert "the log-probabilities of 3 completions differ in some bit" in cure.detail
    assert "log-probabilities differ" in {check.title for check in trust_checks(noisy)}


def test_three_completions_of_three_tokens_are_inconclusive(folder: Path) -> None:
    experiment = Experiment(completions=3, batch_sizes=(1, 2), max_new_tokens=3)
    script = Script(("Once upon a",))
    analysis = analyse(write_run(folder / "three", [script], experiment))
    assert headline(analysis) == ("Inconclusive: one answer in 3 completions, too few comparisons")
    assert GOOD not in {card.mark for card in six_cards(analysis)}


def test_nothing_came_back(story: Analysis) -> None:
    empty = emptied(story)
    how_many, _, _, cure, _, trust = six_cards(empty)
    assert (how_many.answer, cure.mark, trust.mark) == ("None came back", BAD, BAD)
    assert headline(empty) == "No answer came back"


def test_unobserved_batches_are_not_trusted(story: Analysis) -> None:
    unseen = dataclasses.replace(
        story.groups[0].evidence, observed=False, sentence="batches of up to 4 of 16 asked"
    )
    trust = six_cards(change_groups(story, "stock", evidence=unseen))[5]
    assert (trust.mark, trust.answer) == (BAD, "Not yet: batches not seen")
    assert trust.detail == (
        "stock, prompt 1: The load was not formed as asked: batches of up to 4 of 16 asked"
    )


@pytest.mark.parametrize(
    ("proofs", "words"),
    [
        ({}, "no proof"),
        ({"batch-invariant": KernelsProof("batch-invariant", {}, ("aten::mm",))}, "aten::mm"),
        ({"batch-invariant": KernelsProof("batch-invariant", {}, (), "row 3 differs")}, "row 3"),
        ({"batch-invariant": KernelsProof("batch-invariant", {"mm": 4})}, "self-check reports"),
        ({"batch-invariant": KernelsProof("batch-invariant", {"mm": 0}, (), "passed")}, "no over"),
    ],
)
def test_unproven_kernels_are_not_trusted(
    story: Analysis, proofs: dict[str, KernelsProof], words: str
) -> None:
    trust = six_cards(change_run(story, proofs=proofs))[5]
    assert (trust.mark, trust.answer) == (BAD, "Not yet: kernels unproven")
    assert words in trust.detail


def test_an_unfinished_run_is_not_trusted(story: Analysis) -> None:
    trust = six_cards(change_run(story, finished=None))[5]
    assert trust.answer == "Not yet: run unfinished"


def test_missing_completions_are_not_trusted(story: Analysis) -> None:
    trust = six_cards(change_groups(story, "stock", completions=47, failed=1))[5]
    assert trust.answer == "Not yet: answers missing"
    assert "stock, prompt 1: 47 of 48 completions came back (1 request failed)" in trust.detail


def test_repeats_that_differ_are_not_trusted(story: Analysis) -> None:
    rows = tuple(
        dataclasses.replace(row, exact_repeats_differ=2) for row in story.groups[0].by_batch_size
    )
    trust = six_cards(change_groups(story, "stock", by_batch_size=rows))[5]
    assert trust.answer == "Not yet: repeats differ"


def test_one_answer_without_evidence_claims_nothing(silent: Analysis, story: Analysis) -> None:
    halted = change_run(silent, finished=None)
    assert [answer.mark for answer in six_cards(halted)[:3]] == [OPEN] * 3
    assert headline(silent).startswith("One answer, whatever the load")
    assert headline(halted) == "Inconclusive: one answer in 48 completions, run unfinished"
    cure = six_cards(change_run(story, finished=None))[3]
    assert (cure.answer, cure.mark) == ("Not shown yet: 1 distinct of 48", OPEN)


def test_without_completions_no_card_says_that_all_are_the_same(story: Analysis) -> None:
    cards = six_cards(emptied(story))
    assert [card.answer for card in cards[:4]] == [
        "None came back",
        "Unknown",
        "Unknown",
        "Unknown",
    ]
    assert not any("same" in card.detail or card.mark == GOOD for card in cards)


def test_a_bound_names_the_comparisons_behind_it(story: Analysis) -> None:
    statistics = story.groups[1].statistics
    assert statistics is not None
    assert statistics.comparisons < 48, "exact repeats and batches of one are not compared"
    bound = f"0 of {statistics.comparisons} comparisons differed"
    assert bound in six_cards(story)[3].detail
    assert any(bound in one.sentence for one in bounds(story.groups))


@pytest.mark.parametrize(
    ("differ", "words"), [(1, "1 completion differs"), (2, "2 completions differ")]
)
def test_one_completion_differs_and_two_differ(story: Analysis, differ: int, words: str) -> None:
    rows = (dataclasses.replace(story.groups[0].by_batch_size[0], exact_repeats_differ=differ),)
    checks = trust_checks(change_groups(story, "stock", by_batch_size=rows))
    assert any(check.sentence.startswith(f"{words} in an exact repeat") for check in checks)


def test_card_table_figure_and_section_count_the_same_flips(
    story: Analysis, eighty: Analysis
) -> None:
    for analysis in (story, eighty):
        stock = analysis.groups[0]
        assert len(stock.branchings) == stock.distinct - 1
        ties, near = stock.flips[TIE], stock.flips[NEAR_TIE]
        words = [of_kind(ties, TIE), of_kind(near, NEAR_TIE)]
        assert six_cards(analysis)[2].answer == f"Rounding: {', '.join(words)}"
        assert flip_counts(overview(analysis)[0].flips) == ", ".join(words)
        figure = next(one for one in drawn(analysis)[0] if one.name == "divergences")
        assert all(f">{word}</text>" in figure.body for word in words)
        console = Console(file=StringIO(), width=120)
        console.print(summary_table(analysis))
        assert isinstance(console.file, StringIO)
        assert all(word in console.file.getvalue() for word in words)
        places = build_view(analysis).prompts[0].groups[0].places
        assert sum(len(place.continuations) for place in places) == ties + near


def test_the_widest_gap_of_a_tie_is_not_zero(story: Analysis) -> None:
    flips = [branching.flip for branching in story.groups[0].branchings]
    widest = max(max(flip.reference_gap or 0, flip.variant_gap or 0) for flip in flips)
    assert widest > 0
    assert six_cards(story)[2].detail.startswith(f"gaps up to {number(widest)} nats")


@pytest.mark.parametrize(
    ("exact", "again", "passed", "words"),
    [
        (None, 3, False, "sent together again, got 3 other answers"),
        (None, 0, True, "sent together again, got the same answers"),
        (0, 1, False, "sent together again, got 1 other answer"),
        (2, 2, False, "2 completions differ in an exact repeat"),
    ],
)
def test_repeats_of_a_server_are_shown(
    story: Analysis, exact: int | None, again: int, passed: bool, words: str
) -> None:
    rows = (
        dataclasses.replace(
            story.groups[0].by_batch_size[0], exact_repeats_differ=exact, repeats_differ=again
        ),
    )
    analysis = change_groups(story, "stock", by_batch_size=rows)
    analysis = dataclasses.replace(analysis, groups=analysis.groups[:1])
    found = {check.title: check for check in trust_checks(analysis)}
    check = found["repeats hold" if passed else "repeats differ"]
    assert (check.passed, words in check.sentence) == (passed, True), check.sentence
    console = Console(file=StringIO(), width=120)
    console.print(summary_table(analysis))
    assert isinstance(console.file, StringIO)
    assert ("equal trials, sent again, gave" in console.file.getvalue()) == (again > 0)
