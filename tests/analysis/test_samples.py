"""Two samples files: which items differ, and whether the difference of scores is noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from detcheck.analysis.samples import (
    SamplesComparison,
    compare_samples,
    read_samples,
    sign_test,
)
from detcheck.errors import UsageError


def item(number: int, response: str = "The answer is 4", score: float = 1.0, **members: Any) -> Any:
    """A line as lm-evaluation-harness 0.4.9 writes it."""
    return {
        "doc_id": number,
        "doc": {"question": f"{number} + 2?"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": f"Q: {number} + 2?\nA:", "arg_1": {"until": ["\n"]}}},
        "resps": [[response]],
        "filtered_resps": [response.rsplit(maxsplit=1)[-1]],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "a",
        "prompt_hash": "b",
        "target_hash": "c",
        "exact_match": score,
    } | members


def write(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def compared(
    tmp_path: Path, left: Iterable[Any], right: Iterable[Any], **options: Any
) -> SamplesComparison:
    files = (write(tmp_path / "left", left), write(tmp_path / "right", right))
    return compare_samples(*map(read_samples, files), **options)


def test_equal_files_have_no_difference(tmp_path: Path) -> None:
    items = [item(number) for number in range(5)]
    found = compared(tmp_path, items, items)
    assert (found.items, found.differences, found.better, found.worse) == (5, (), 0, 0)
    assert (found.filter, found.metric) == ("strict-match", "exact_match")
    assert (found.left_score, found.right_score, found.p_value) == (1.0, 1.0, 1.0)
    assert found.sentence == "no item changed its score"


def test_items_that_differ_are_named_with_where_they_diverge(tmp_path: Path) -> None:
    left = [item(0), item(1), item(2)]
    right = [item(0), item(1, "The answer must be 4"), item(2, "The answer is 5", 0.0)]
    found = compared(tmp_path, left, right)
    assert (found.responses_differ, found.answers_differ) == (2, 1)
    assert (found.better, found.worse) == (0, 1)
    words, answer = found.differences
    assert (words.left.item, words.left_score, words.right_score) == ("1", 1.0, 1.0)
    assert words.divergence is not None
    assert (words.divergence.position, words.divergence.unit) == (11, "character")
    assert (answer.left.answer, answer.right.answer, answer.right_score) == ("4", "5", 0.0)
    assert found.right_score == pytest.approx(2 / 3)
    assert found.sentence == (
        "1 of 3 items changed its score (0 up, 1 down): -33.3 points, within load noise (p = 1)"
    )


@pytest.mark.parametrize(("down", "within"), [(5, True), (6, False)])
def test_a_difference_is_noise_while_chance_gives_it(
    tmp_path: Path, down: int, within: bool
) -> None:
    left = [item(number) for number in range(20)]
    right = [item(number, score=float(number >= down)) for number in range(20)]
    found = compared(tmp_path, left, right)
    assert found.within_noise is within
    assert ("more than load noise" in found.sentence) is not within


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 3), (9, 2), (200, 150)])
def test_the_sign_test_is_the_exact_one(better: int, worse: int) -> None:
    changed = better + worse
    expected = stats.binomtest(better, changed).pvalue if changed else 1.0
    assert sign_test(better, worse) == pytest.approx(expected)


def test_another_prompt_is_another_question(tmp_path: Path) -> None:
    right = [item(0), item(1, "no", 0.0, arguments=[["Q: other", {}]]), item(7)]
    found = compared(tmp_path, [item(0), item(1), item(2)], right)
    assert (found.items, found.other_prompt) == (1, 1)
    assert (found.only_left, found.only_right, found.differences) == (1, 1, ())


def test_both_forms_of_arguments_are_read(tmp_path: Path) -> None:
    pairs = [item(0, arguments=[["Q: 0 + 2?\nA:", {"until": ["\n"]}]])]
    assert compared(tmp_path, [item(0)], pairs).items == 1


def test_filters_and_metrics_are_chosen(tmp_path: Path) -> None:
    def both(score: float) -> list[Mapping[str, Any]]:
        other = item(0, score=score, filter="flexible", metrics=["exact_match", "f1"], f1=0.5)
        return [item(0), other]

    found = compared(tmp_path, both(0.0), both(1.0), filter="flexible")
    assert (found.filter, found.metric, found.better) == ("flexible", "exact_match", 1)
    found = compared(tmp_path, both(0.0), both(1.0), filter="flexible", metric="f1")
    assert (found.metric, found.better, found.left_score) == ("f1", 0, 0.5)
    with pytest.raises(UsageError, match="no filter other: one has 'strict-match', 'flexible'"):
        compared(tmp_path, both(0.0), both(1.0), filter="other")
    with pytest.raises(UsageError, match="no metric bleu"):
        compared(tmp_path, both(0.0), both(1.0), metric="bleu")


def test_files_that_do_not_list_their_metrics(tmp_path: Path) -> None:
    lines = [{k: v for k, v in item(0).items() if k not in ("metrics", "filter")}]
    found = compared(tmp_path, lines, lines)
    assert (found.metric, found.filter) == ("exact_match", "none")


def test_choices_scored_by_likelihood(tmp_path: Path) -> None:
    def choice(first: str) -> Mapping[str, Any]:
        answers = [[first, "False"], ["-2.5", "True"]]
        resps = [[one] for one in answers]
        return item(0, resps=resps, filtered_resps=answers, metrics=["acc"], acc=1.0)

    found = compared(tmp_path, [choice("-1.25")], [choice("-1.5")])
    assert (found.metric, found.responses_differ, found.better) == ("acc", 1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no items"),
        ("nonsense", r"line 1 is not an item .* --log_samples"),
        ('{"doc_id": 1}', "it has no arguments"),
        ('["a"]', "line 1 is not an item"),
        (json.dumps(item(0)) + "\n\n" + json.dumps(item(0)), "line 3 holds item 0 a second time"),
        (json.dumps(item(0, arguments={})), "it holds no request"),
        (json.dumps(item(0, arguments="x")), "neither a list nor an object"),
        ('{"doc_id": "\\ud800', "line 1 is not an item"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_samples(path)


def test_a_missing_file_and_no_common_item_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="no item with the same prompt"):
        compared(tmp_path, [item(0)], [item(1)])


def choice(number: int, *log_likelihoods: float, acc: float = 1.0) -> Any:
    """An item of a choice among continuations; the harness writes its results as text."""
    results = [[str(value), "False"] for value in log_likelihoods]
    arguments = {
        f"gen_args_{place}": {"arg_0": f"Q{number}?", "arg_1": text}
        for place, text in enumerate((" no", " yes"))
    }
    members = {"arguments": arguments, "resps": [[one] for one in results], "target": "1"}
    scored = {"filtered_resps": results, "filter": "none", "metrics": ["acc"], "acc": acc}
    return item(number) | members | scored


def test_the_answer_of_a_choice_is_the_most_likely_continuation(tmp_path: Path) -> None:
    """Both items change bits of their log-likelihoods; only the second chooses another text."""
    left = [choice(0, -3.0, -2.0), choice(1, -2.5, -2.0)]
    right = [choice(0, -3.25, -2.0), choice(1, -1.5, -2.0, acc=0.0)]
    found = compared(tmp_path, left, right)
    assert (found.responses_differ, found.answers_differ, found.worse) == (2, 1, 1)
    first, second = found.differences
    assert (first.left.answer, first.right.answer, first.divergence) == ("yes", "yes", None)
    assert (second.left.answer, second.right.answer) == ("yes", "no")
    assert second.right.log_likelihoods == (-1.5, -2.0)


def test_items_with_another_right_answer_are_not_compared(tmp_path: Path) -> None:
    left = [item(0), item(1)]
    found = compared(tmp_path, left, [item(0), item(1, target="5", score=0.0)])
    assert (found.items, found.other_target, found.other_prompt) == (1, 1, 0)
    assert (found.worse, found.left_score, found.right_score) == (0, 1.0, 1.0)
    with pytest.raises(UsageError, match="no item with the same prompt and right answer"):
        compared(tmp_path, left, [item(0, target="5"), item(1, target="5")])


def test_items_asked_with_other_options_are_counted(tmp_path: Path) -> None:
    longer = {"gen_args_0": {"arg_0": "Q: 1 + 2?\nA:", "arg_1": {"until": ["\n"], "max": 9}}}
    found = compared(tmp_path, [item(0), item(1)], [item(0), item(1, arguments=longer)])
    assert (found.items, found.other_options, found.other_prompt) == (2, 1, 0)


def test_a_score_beyond_one_is_not_told_in_points(tmp_path: Path) -> None:
    def scored(*scores: float) -> list[Any]:
        return [item(n, metrics=["bleu"], bleu=score) for n, score in enumerate(scores)]

    found = compared(tmp_path, scored(37.5, 40.0), scored(38.5, 40.0))
    assert not found.is_share
    assert "(1 up, 0 down): +0.5, within load noise" in found.sentence
    assert ": +50 points," in compared(tmp_path, scored(0, 0), scored(1, 0)).sentence


def test_a_metric_that_is_not_a_number_everywhere_is_not_averaged(tmp_path: Path) -> None:
    """NaN would make the mean NaN; the harness writes it as it is."""
    both = {"metrics": ["f1", "exact_match"]}
    left = [item(0, f1=math.nan, **both), item(1, f1=1.0, **both)]
    assert compared(tmp_path, left, left).metric == "exact_match"
    with pytest.raises(UsageError, match="every compared item has a number for it"):
        compared(tmp_path, left, left, metric="f1")


def of_version_0_4_2(number: int, response: str = "The answer is 4", **members: Any) -> Any:
    """An item as that version writes it: its requests as lists, no filter, no list of metrics."""
    sent = [f"Q: {number} + 2?\nA:", {"until": ["\n"]}]
    taken = item(number, response, arguments=[sent], **members)
    others = ("filter", "metrics", "doc_hash", "prompt_hash", "target_hash")
    return {name: value for name, value in taken.items() if name not in others}


def test_one_array_of_early_versions_is_read(tmp_path: Path) -> None:
    """The items of the second filter come after all of the first; neither is named."""
    first = [of_version_0_4_2(number) for number in range(3)]
    second = [of_version_0_4_2(number, "It is 4.", score=0.0) for number in range(3)]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps([*first, *second], indent=2))
    found = read_samples(path)
    assert found.filters == ("none", "none 2")
    assert [each.scores["exact_match"] for each in found.samples["none 2"]] == [0.0] * 3
    assert compare_samples(found, found, filter="none 2").right_score == 0
    path.write_text(json.dumps([*first, {"doc_id": 7}], indent=2))
    with pytest.raises(UsageError, match=r"line \d+ is not an item .*it has no arguments"):
        read_samples(path)


def test_a_choice_of_an_early_version_is_compared_by_its_numbers(tmp_path: Path) -> None:
    """They are written as numbers there, and as text today."""
    new = choice(1, -1.5, -2.0)
    old = new | {name: [[-1.5, False], [-2.0, False]] for name in ("resps", "filtered_resps")}
    found = compared(tmp_path, [old], [new])
    assert (found.items, found.responses_differ, found.differences) == (1, 0, ())


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "plain", [item(0)])
    marked = tmp_path / "marked"
    marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_samples(marked).samples == read_samples(path).samples
