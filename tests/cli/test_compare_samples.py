"""`detcheck compare` of two samples files: which items differ, and whether that is load noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from analysis.answers import AnsweringEngine
from recorded import record, small_experiment

from detcheck.completion import Completion
from detcheck.prompts import PromptItem
from detcheck.traffic import Trial


def sample(number: int, answer: int, score: float, **members: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": f"Q: {number}", "arg_1": {}}},
        "resps": [[f"The answer is {answer}"]],
        "filtered_resps": [str(answer)],
        "filter": "strict",
        "metrics": ["exact_match"],
        "exact_match": score,
    } | members


def write(name: str, *lines: Any) -> Path:
    path = Path(name)
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture
def files(detcheck) -> tuple[Path, Path]:
    """Item 3 turns wrong, item 4 is only in the second, item 5 was asked something else."""
    other = {"arguments": {"gen_args_0": {"arg_0": "another", "arg_1": {}}}}
    same = [sample(number, 4, 1.0) for number in range(3)]
    left = write("a.jsonl", *same, sample(3, 4, 1.0), sample(5, 4, 1.0))
    moved = sample(5, 4, 1.0, **other)
    right = write("b.jsonl", *same, sample(3, 7, 0.0), sample(4, 4, 1.0), moved)
    return left, right


def test_the_finding_and_the_differing_item_are_shown(detcheck, files) -> None:
    result = detcheck("compare", *files)
    assert (result.code, result.err) == (0, "")
    assert "exact_match: 1.0000 / 0.7500" in result.out
    assert "1 of 4 items changed its score (0 up, 1 down): -25 points, within load noise" in (
        result.out
    )
    assert "4 items compared under the filter strict: 1 with another response" in result.out
    assert "not compared: 1 item that both have with another prompt" in result.out
    assert "only in B: 1 item" in result.out
    row = next(line for line in result.out.splitlines() if line.strip().startswith("3 "))
    assert '"4" / "7"' in row
    assert "at character 14" in row


def test_equal_files_have_no_table(detcheck, files) -> None:
    result = detcheck("compare", files[0], files[0])
    assert "No item changed its score." in result.out
    assert "responses part" not in result.out


def test_json_has_the_item_with_both_answers(detcheck, files) -> None:
    document = json.loads(detcheck("compare", *files, "--json").out)
    [difference] = document["differences"]
    assert (difference["item"], difference["left"]["answer"], difference["right"]["answer"]) == (
        "3",
        "4",
        "7",
    )
    assert difference["parting"]["position"] == 14
    assert (document["items"], document["worse"], document["within_noise"]) == (4, 1, True)


def test_a_difference_in_one_direction_is_more_than_noise(detcheck) -> None:
    """Six of six down: two-sided sign test 2 / 2**6 = 0.03125."""
    left = write("a.jsonl", *(sample(number, 4, 1.0) for number in range(6)))
    right = write("b.jsonl", *(sample(number, 7, 0.0) for number in range(6)))
    document = json.loads(detcheck("compare", left, right, "--json").out)
    assert (document["p_value"], document["within_noise"]) == (0.03125, False)


def test_the_difference_is_held_against_the_measured_noise_of_a_run(detcheck, files) -> None:
    """One of two items is wrong at batch size 8 with stock kernels: its score moves by 50 points.
    The files differ by 25 points; a second pair by 100."""

    def respond(trial: Trial, position: int) -> Completion:
        wrong = trial.condition.batch_size == 8 and trial.condition.kernels == "stock"
        first = trial.requests[position].prompt == "One?"
        return Completion("7" if wrong and first else "6", "stop")

    items = (PromptItem(answer="6"), PromptItem(answer="6"))
    asked = {"prompts": ("One?", "Two?"), "items": items, "answer": "number"}
    experiment = small_experiment(batch_sizes=(1, 8), completions=16, **asked)
    record(Path("noise"), AnsweringEngine(respond), experiment)
    result = detcheck("compare", *files, "--noise", "noise")
    assert (
        "The load alone moved the score of noise by 50 points (2 items, stock kernels): the "
        "difference of 25 points is not larger." in result.out
    )
    low = write("low.jsonl", *(sample(number, 7, 0.0) for number in range(3)))
    document = json.loads(detcheck("compare", files[0], low, "--noise", "noise", "--json").out)
    assert document["load_noise"] == {
        "run": "noise",
        "kernels": "stock",
        "items": 2,
        "points": 50.0,
        "exceeded": True,
    }
    assert json.loads(detcheck("compare", *files, "--json").out)["load_noise"] is None


def test_noise_needs_a_score(detcheck, files, good) -> None:
    refused = detcheck("compare", *files, "--noise", good)
    assert (
        refused.code,
        "has no score at two batch sizes: run it with a parser (--answer)" in refused.err,
    ) == (2, True)


def test_a_run_without_one_right_answer_measures_no_noise(detcheck, files) -> None:
    """Its score is 0 at every load, so each difference of two scores would be larger."""
    engine = AnsweringEngine(lambda trial, position: Completion("7", "stop"))
    asked = {"prompts": ("One?",), "items": (PromptItem(answer="six"),), "answer": "number"}
    experiment = small_experiment(batch_sizes=(1, 8), completions=16, **asked)
    record(Path("zero"), engine, experiment)
    refused = detcheck("compare", *files, "--noise", "zero")
    assert (refused.code, "No completion of zero gives a right answer" in refused.err) == (2, True)


def test_what_makes_two_files_unlike_is_told(detcheck, files) -> None:
    options = {"gen_args_0": {"arg_0": "Q: 0", "arg_1": {"max_gen_toks": 9}}}
    other = write(
        "other.jsonl", sample(0, 4, 1.0, arguments=options), sample(1, 4, 1.0, target="7")
    )
    out = detcheck("compare", files[0], other).out
    assert "1 item asked with other options: a difference may come from these" in out
    assert "not compared: 1 item that both have with another right answer" in out
    document = json.loads(detcheck("compare", files[0], other, "--json").out)
    assert (document["other_options"], document["other_target"], document["is_share"]) == (
        1,
        1,
        True,
    )


def test_noise_is_in_points_and_so_must_the_metric_be(detcheck, good) -> None:
    rows = [sample(number, 4, 1.0, metrics=["bleu"], bleu=37.5 + number) for number in range(2)]
    path = write("bleu.jsonl", *rows)
    refused = detcheck("compare", path, path, "--noise", good)
    assert (
        refused.code,
        "bleu is not a share from 0 to 1, and --noise is measured" in refused.err,
    ) == (
        2,
        True,
    )


def test_a_choice_shows_by_how_much_its_log_likelihoods_differ(detcheck) -> None:
    def choice(second: float) -> dict[str, Any]:
        texts = {f"gen_args_{n}": {"arg_0": "Q", "arg_1": f" {n}"} for n in range(2)}
        results = [["-2.0", "False"], [str(second), "False"]]
        return sample(0, 4, 1.0, arguments=texts, resps=[results], filtered_resps=results)

    result = detcheck("compare", write("a.jsonl", choice(-1.5)), write("b.jsonl", choice(-1.75)))
    [row] = [line for line in result.out.splitlines() if line.strip().startswith("0 ")]
    assert '"1", the same' in row
    assert "log-likelihoods differ by up to 0.25" in row


def test_files_that_do_not_go_together_are_refused(detcheck, files, good) -> None:
    left, right = files
    old = write("old.jsonl", {"doc_id": 0, "logit_0": -3.0})
    for arguments, words in (
        ((left, good), "is a run directory, and the other is a file: give two of one kind."),
        ((left, "gone.jsonl"), "gone.jsonl is not there, and the other is a file"),
        ((left, old), "old.jsonl line 1 is not an item of a samples file of lm-evaluation-harness"),
        ((left, right, "--metric", "f1"), "The samples files have no metric f1"),
        (
            (good, good, "--filter", "strict"),
            "--filter, --metric and --noise are for samples files",
        ),
    ):
        result = detcheck("compare", *arguments)
        assert result.code == 2
        assert words in result.err
