"""Whether the answer changes, not only the text: counts, agreement, accuracy by load."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import record, small_experiment
from scipy import stats

from detcheck.analysis import analyse
from detcheck.analysis.answers import AnswerStability, answer_stability, exact_interval
from detcheck.completion import Completion
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.parsers import AnswerParser, answer_parser
from detcheck.traffic import Trial

from .answers import AnsweringEngine

NUMBER = answer_parser("number")
PROMPTS = ("One?", "Two?", "Three?", "Four?")


def text_of(trial: Trial, position: int) -> str:
    """One? is right alone and wrong in a batch of 8; Two? only changes its words; Three? is wrong;
    Four? has no number for half of the requests in a batch of 4."""
    prompt, size = trial.requests[position].prompt, trial.condition.batch_size
    stock = trial.condition.kernels == STOCK
    if prompt == "One?":
        return "It is 7" if stock and size == 8 else "It is 6"
    if prompt == "Two?":
        return f"so, {'well, ' * (stock and size > 1)}12.0"
    if prompt == "Three?":
        return "99"
    return "no idea" if stock and size == 4 and position % 2 else "4"


def stabilities(
    path: Path, parse: AnswerParser = NUMBER, **fields: object
) -> tuple[AnswerStability, ...]:
    defaults = {"prompts": PROMPTS, "batch_sizes": (1, 4, 8), "completions": 20}
    engine = AnsweringEngine(lambda trial, position: Completion(text_of(trial, position), "stop"))
    run = record(path, engine, small_experiment(**(defaults | fields)))
    expected = {0: "6", 1: " 12 ", 2: "3", 3: "4"}
    return answer_stability(analyse(run), parse, expected)


def test_items_that_flip_are_found_with_both_answers(tmp_path: Path) -> None:
    stock, invariant = stabilities(tmp_path / "run")
    assert (stock.kernels, invariant.kernels) == (STOCK, BATCH_INVARIANT)
    one, four = stock.flipped
    assert [(a.answer, a.batch_sizes) for a in one.answers] == [("6", (1, 4)), ("7", (8,))]
    assert one.answers[1].example == "It is 7"
    assert [(a.answer, a.batch_sizes) for a in four.answers] == [("4", (1, 4, 8)), (None, (4,))]
    assert invariant.flipped == ()
    assert (stock.flip_share, invariant.flip_share) == (0.5, 0.0)


def test_raw_and_parsed_agreement(tmp_path: Path) -> None:
    """Of four items three change their text, and two of these their answer."""
    stock, invariant = stabilities(tmp_path / "run")
    assert (stock.raw_agreement, stock.parsed_agreement) == (0.25, 0.5)
    assert (invariant.raw_agreement, invariant.parsed_agreement) == (1.0, 1.0)


def test_accuracy_by_load(tmp_path: Path) -> None:
    stock, invariant = stabilities(tmp_path / "run")
    assert [(load.batch_size, load.accuracy) for load in stock.by_load] == [
        (1, 0.75),
        (4, (1 + 1 + 0 + 0.5) / 4),
        (8, 0.5),
    ]
    assert (stock.best, stock.worst, stock.spread) == (0.75, 0.5, 0.25)
    assert stock.accuracy_std == pytest.approx(0.125)
    mean = 0.625
    assert stock.standard_error == pytest.approx((mean * (1 - mean) / 4) ** 0.5)
    assert stock.sentence.startswith("the load alone moves this score by ±12.5 points")
    assert {load.accuracy for load in invariant.by_load} == {0.75}
    assert (invariant.spread, invariant.sentence) == (0, "the load does not move this score")


def test_unparsed_completions_are_counted_and_shown(tmp_path: Path) -> None:
    stock, _ = stabilities(tmp_path / "run")
    assert 0 < stock.unparsed < stock.completions
    assert stock.unparsed_examples == ("no idea",)
    nothing, _ = stabilities(tmp_path / "nothing", answer_parser("regex:zzz"))
    assert nothing.unparsed == nothing.completions > 0
    assert len(nothing.unparsed_examples) == 3
    assert nothing.flip_share == 0.0


def test_div_index_is_the_mean_over_items_that_diverge(tmp_path: Path) -> None:
    stock, invariant = stabilities(tmp_path / "run")
    indices = {item.prompt: item.div_index for item in stock.items}
    assert indices == {"One?": 6, "Two?": 4, "Three?": None, "Four?": 0}
    assert stock.div_index == pytest.approx((6 + 4 + 0) / 3)
    assert invariant.div_index is None


def test_without_right_answers_there_is_no_accuracy(tmp_path: Path) -> None:
    engine = AnsweringEngine(lambda trial, position: Completion(text_of(trial, position), "stop"))
    experiment = small_experiment(prompts=PROMPTS[:1], batch_sizes=(1, 8), completions=16)
    analysis = analyse(record(tmp_path / "run", engine, experiment))
    stock, _ = answer_stability(analysis, NUMBER)
    assert (stock.by_load, stock.best, stock.spread, stock.accuracy_std) == ((), None, None, None)
    assert stock.standard_error is None
    assert stock.sentence == "the answer to 1 of 1 item changes with the load"


def test_an_item_that_failed_under_one_load_does_not_move_the_accuracy(tmp_path: Path) -> None:
    def respond(trial: Trial, position: int) -> Completion:
        if trial.requests[position].prompt == "Three?" and trial.condition.batch_size == 8:
            return Completion("", "error", error="gone")
        return Completion({"One?": "6", "Two?": "12"}.get(trial.requests[position].prompt, "0"), "")

    experiment = small_experiment(
        prompts=PROMPTS[:3], kernels=(STOCK,), batch_sizes=(1, 8), completions=16
    )
    analysis = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment))
    [stock] = answer_stability(analysis, NUMBER, {0: "6", 1: "12", 2: "3"})
    assert [load.accuracy for load in stock.by_load] == [1.0, 1.0]


def test_before_anything_came_back_nothing_is_claimed(tmp_path: Path) -> None:
    analysis = analyse(record(tmp_path / "run", limit=0))
    for found in answer_stability(analysis, NUMBER, {0: "1"}):
        assert (found.items, found.flip_share, found.flip_interval) == ((), None, None)
        assert (found.raw_agreement, found.parsed_agreement, found.by_load) == (None, None, ())


def test_a_parser_may_be_any_function(tmp_path: Path) -> None:
    stock, _ = stabilities(tmp_path / "run", lambda text: "same")
    assert (stock.parsed_agreement, stock.unparsed) == (1.0, 0)


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 200), (3, 200), (200, 200), (1, 1)])
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, trials: int) -> None:
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert exact_interval(hits, trials) == pytest.approx((expected.low, expected.high), rel=1e-6)


def test_flip_share_has_its_interval(tmp_path: Path) -> None:
    stock, _ = stabilities(tmp_path / "run")
    assert stock.flip_interval == exact_interval(2, 4)
