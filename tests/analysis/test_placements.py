"""Several places in one grid: rows for each, compared with the first within their group."""

from __future__ import annotations

import json

import pytest
from asking import Asked, ask, conditions_of
from recorded import create, record

from analysis.answers import AnsweringEngine, answer, text_variant
from detcheck.analysis import analyse
from detcheck.analysis.flips import judge
from detcheck.completion import Completion, TopTwo
from detcheck.evidence import SERVER_COUNTERS, STREAMED_TOKENS, EndpointCheck, LoadEvidence
from detcheck.experiment import Experiment
from detcheck.gate import judge as judge_run
from detcheck.report.csv_export import csv_files
from detcheck.report.html import render
from detcheck.report.markdown import render as render_markdown
from detcheck.report.reproduce import command
from detcheck.report.view import build_view
from detcheck.rundir import load
from detcheck.targets import from_dict

ENDPOINTS = ("http://one/v1", "http://two/v1")


def served(**fields) -> Asked:
    usual = {"endpoints": ENDPOINTS, "batch_sizes": (1, 4), "completions": 8, "max_new_tokens": 24}
    return ask(**usual | fields)


def record_served(path, engine, asked: Asked):
    return record(path, engine, asked.experiment, target=asked.target)


def test_the_grid_holds_every_place() -> None:
    experiment, target = served()
    ids = [condition.condition_id for condition in conditions_of(experiment, target)]
    assert ids == [
        "p0/as-served/b1/endpoint-1",
        "p0/as-served/b1/endpoint-2",
        "p0/as-served/b4/endpoint-1",
        "p0/as-served/b4/endpoint-2",
    ]
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment
    assert from_dict(json.loads(json.dumps(target.to_dict()))) == target
    one = conditions_of(*served(endpoints=ENDPOINTS[:1]))
    assert [condition.placement for condition in one] == ["", ""]


def test_vllm_changes_place_last() -> None:
    asked = ask(engine="vllm", tensor_parallel=(1, 3), kernels=("stock",))
    places = [condition.placement for condition in conditions_of(*asked)]
    assert places == ["tp1"] * 4 + ["tp3"] * 4


def differing(trial, position):
    other = trial.condition.placement == "endpoint 2"
    return answer([1, 2, 9 if other else 3], rows=trial.condition.batch_size)


def test_places_are_compared_with_the_first(tmp_path) -> None:
    analysis = analyse(record_served(tmp_path / "run", AnsweringEngine(differing), served()))
    (group,) = analysis.groups
    assert group.reference.variant.token_ids.tolist() == [1, 2, 3]
    rows = {(row.placement, row.batch_size): row for row in group.by_batch_size}
    assert [row.differ_from_reference for row in rows.values()] == [0, 0, row_count(rows), 4]
    assert group.asked == 16
    for text in (
        csv_files(analysis)["conditions.csv"],
        render(build_view(analysis), {}),
        render_markdown(build_view(analysis), {}),
    ):
        assert "endpoint 2" in text
    again = command(analysis.run.experiment, analysis.run.target)
    assert "--endpoint http://one/v1 --endpoint http://two/v1" in again
    assert " -k " not in again


def row_count(rows) -> int:
    return rows["endpoint 2", 1].completions


def test_one_place_is_not_shown(tmp_path) -> None:
    experiment = served(endpoints=ENDPOINTS[:1])
    analysis = analyse(record_served(tmp_path / "run", AnsweringEngine(differing), experiment))
    assert "placement" not in csv_files(analysis)["conditions.csv"]
    by_batch_size = render_markdown(build_view(analysis), {}).split("By batch size")[1]
    assert "where" not in by_batch_size.split("\n")[2]


@pytest.mark.parametrize(
    ("load", "observed", "said"),
    [
        (LoadEvidence(SERVER_COUNTERS, 4), True, "up to 4 of 4 asked, by the server's own"),
        (LoadEvidence(SERVER_COUNTERS, 3), True, "up to 3 of 4 asked, by the server's own"),
        (LoadEvidence(STREAMED_TOKENS, 3), True, "by overlapping streams"),
        (LoadEvidence(STREAMED_TOKENS, 2), False, "up to 2 where 4 were asked"),
        (LoadEvidence(STREAMED_TOKENS, 1), False, "one request at a time: no batch was ever"),
        (None, False, "no batches were observed"),
    ],
)
def test_evidence_of_a_server(tmp_path, load, observed, said) -> None:
    experiment = served(endpoints=ENDPOINTS[:1])
    writer = create(tmp_path / "run", *experiment)
    for index, condition in enumerate(conditions_of(*experiment)):
        seen = load and LoadEvidence(load.source, min(load.rows_max, condition.batch_size))
        completions = [(0, answer([1, 2]))]
        writer.append_trial(
            index, 0, completions, elapsed_s=1.0, generated_tokens=2, load=seen, retries=1
        )
    writer.close()
    (group,) = analyse(load_run(tmp_path)).groups
    assert group.evidence.observed is observed
    assert said in group.evidence.sentence


def load_run(tmp_path):
    return load(tmp_path / "run")


def test_failures_and_checks_are_kept(tmp_path) -> None:
    experiment = served(endpoints=ENDPOINTS[:1])
    writer = create(tmp_path / "run", *experiment)
    failed = Completion("", "error", error="no token in time", failure="timeout")
    writer.append_trial(
        0, 0, [(0, failed)], elapsed_s=1.0, generated_tokens=0, filler_failures={"reset": 2}
    )
    check = EndpointCheck("no cache", False, "replies come from a cache", decisive=True)
    writer.set_endpoint_checks([check])
    writer.save()
    writer.close()
    run = load_run(tmp_path)
    assert run.conditions[0].failures == {"timeout": 1, "reset": 2}
    assert run.endpoint_checks == (check,)
    analysis = analyse(run)
    said = {f.rule: (f.effect, f.sentence) for f in judge_run(analysis).findings}
    assert said["endpoint-sound"][0] == "inconclusive"
    assert "1 timeout" in said["every-completion"][1]


@pytest.mark.parametrize(
    ("ours", "theirs", "position", "gap", "won"),
    [
        ([" a", " the", " x"], [" a", " then", " y"], 6, 0.5, True),
        ([" a", " the"], [" a", " cat"], 3, 0.5, False),
        ([" a", " the"], [" a"], 2, 0.5, None),
        ([" a", " the", " x"], [" a", " the", " z"], 7, 2.0, False),
    ],
)
def test_a_flip_in_text_is_judged_at_its_token(ours, theirs, position, gap, won) -> None:
    gaps = [3.0, 0.5, 2.0][: len(ours)]
    reference = text_variant(ours, gaps, [" b", " then", " q"][: len(ours)])
    variant = text_variant(theirs, [3.0] * len(theirs), ["-"] * len(theirs))
    flip = judge(reference, variant, position, noise=1.0)
    assert flip.reference_gap == gap
    assert flip.runner_up_won is won


def test_texts_are_stored_and_come_back(tmp_path) -> None:
    def answering(trial, position):
        return Completion(
            "ab",
            "stop",
            token_ends=(1, 2),
            top_two=TopTwo(None, (0.1, 0.2), (-1.0, -1.0), ("x", "y")),
        )

    run = record_served(
        tmp_path / "run", AnsweringEngine(answering), served(endpoints=ENDPOINTS[:1])
    )
    (variant,) = run.variants
    assert variant.runner_up_texts == ("x", "y")
    assert variant.token_keys() == ("a", "b")
    assert variant.fingerprint.startswith("sha256-text:")


def test_the_first_answer_is_held_against_the_rest(tmp_path) -> None:
    def cold_first(trial, position):
        first = trial.condition.batch_size == 1 and trial.index == 0
        return answer([1, 9 if first else 2], rows=trial.condition.batch_size)

    for engine, differs in (
        (AnsweringEngine(cold_first), True),
        (AnsweringEngine(differing), False),
    ):
        experiment = served(endpoints=ENDPOINTS[:1], completions=12)
        analysis = analyse(record_served(tmp_path / str(differs), engine, experiment))
        (group,) = analysis.groups
        assert group.prefix_cache.first_differs is differs
        notes = [finding.rule for finding in judge_run(analysis).findings]
        assert ("prefix-cache" in notes) is differs
