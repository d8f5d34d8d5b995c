"""Requests for several choices: each is compared by its number, and faults are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from msgspec.structs import replace
from sweeps import few

from detcheck import rundir
from detcheck.analysis import Analysis, analyse
from detcheck.analysis.batches import evidence
from detcheck.budget import Budget
from detcheck.completion import Completion, TopTwo
from detcheck.engines.openai.choices_tally import ChoicesTally
from detcheck.engines.openai.request import Question
from detcheck.errors import MeasurementError, UsageError
from detcheck.evidence import SERVER_COUNTERS, STREAMED_TOKENS
from detcheck.experiment import Experiment
from detcheck.gate import GateOptions, judge
from detcheck.gate.baseline import baseline_of
from detcheck.gate.control import check_control
from detcheck.rundir import ConditionRecord
from detcheck.runner import run
from detcheck.targets import Served

from .server import ToyServer

Serve = Callable[..., ToyServer]
Measure = Callable[..., Analysis]
SAMPLED = {"temperature": 0.8, "choices": 3}


def check_of(analysis: Analysis, name: str) -> Any:
    """The endpoint check of that name; None if there is none."""
    return next((one for one in analysis.run.endpoint_checks if one.name == name), None)


@few("chat_template", [True, False])
@few("whole", [True, False])
def test_each_choice_is_a_sample_of_its_own_and_the_same_under_every_load(
    serve: Serve, measure: Measure, chat_template: bool, whole: bool
) -> None:
    server = serve(whole=whole)
    analysis = measure(server, chat_template=chat_template, **SAMPLED)
    (group,) = analysis.groups
    assert group.completions == group.asked == 3 * 27
    assert group.failed == 0
    assert [split.seed for split in group.by_seed] == [0, 1, 2]
    assert group.answers_from_seeds == group.distinct == 3
    assert group.distinct_within_seed == 1
    assert group.sample == "choice"
    assert check_of(analysis, "choices of equal requests").holds
    other = "choices on /completions" if chat_template else "choices on /chat/completions"
    assert check_of(analysis, other).holds
    assert check_of(analysis, "choices").holds
    probes = [body for body in server.behaviour.seen if body.get("n") == 3]
    assert len(probes) == 27 + 2 + 2  # the experiment's, and the checks' on each path


def test_a_choice_that_changes_under_load_is_held_against_the_choice_of_its_number(
    serve: Serve, measure: Measure
) -> None:
    analysis = measure(serve(differ_above=4), **SAMPLED)
    (group,) = analysis.groups
    assert group.distinct == 6
    assert group.distinct_within_seed == 2
    assert {(one.seed, one.position) for one in group.divergences} == {(0, 3), (1, 3), (2, 3)}


def test_a_single_request_with_choices_is_a_batch_that_a_server_forms(
    serve: Serve, measure: Measure
) -> None:
    """So its repeats are no exact repeats, as those of a single choice are."""
    analysis = measure(serve(), **SAMPLED)
    (alone, _) = analysis.groups[0].by_batch_size
    assert alone.exact_repeats_differ is None
    asked = dict(judge(analysis, GateOptions()).judged.facts())["asked"]
    assert "temperature 0.8 with seed 0 and 3 choices, batch sizes 1, 8" in asked


def test_a_single_request_with_one_choice_repeats_exactly(serve: Serve, measure: Measure) -> None:
    analysis = measure(serve())
    assert analysis.groups[0].by_batch_size[0].exact_repeats_differ == 0


def test_choices_at_temperature_0_are_one_sample(serve: Serve, measure: Measure) -> None:
    analysis = measure(serve(), choices=3)
    (group,) = analysis.groups
    assert (group.completions, group.distinct, len(group.by_seed)) == (81, 1, 1)
    assert group.sample == "seed"
    assert check_of(analysis, "choices of equal requests").holds


def test_choices_that_differ_at_temperature_0_are_counted_as_answers(
    serve: Serve, measure: Measure
) -> None:
    analysis = measure(serve(ignores_temperature=True), choices=3)
    (group,) = analysis.groups
    assert group.distinct == 3
    assert group.distinct_within_seed == 3
    assert max(row.distinct_within_seed for row in group.by_batch_size) == 3
    assert check_of(analysis, "choices of equal requests").holds is False


def test_cloned_choices_are_found(serve: Serve, measure: Measure) -> None:
    analysis = measure(serve(choice_fault="cloned"), **SAMPLED)
    (group,) = analysis.groups
    assert group.answers_from_seeds == 1
    check = check_of(analysis, "choices of equal requests")
    assert check.holds is False
    assert check.decisive
    assert "cloned" in check.sentence
    assert "all choices are equal in each of 27 requests" in check_of(analysis, "choices").sentence


def test_choices_under_other_numbers_are_named(serve: Serve, measure: Measure) -> None:
    analysis = measure(serve(choice_fault="renumbered"), **SAMPLED)
    (group,) = analysis.groups
    assert group.distinct == 3
    assert group.distinct_within_seed == 2  # choices 0 and 1 have changed places
    check = check_of(analysis, "numbers of choices")
    assert check.holds is False
    assert check.decisive
    assert "under other numbers" in check.sentence


@few("whole", [True, False])
@pytest.mark.parametrize("fault", ["missing", "duplicated"])
def test_a_server_that_does_not_give_every_choice_is_refused(
    serve: Serve, measure: Measure, fault: str, whole: bool
) -> None:
    with pytest.raises(MeasurementError, match=r"does not give 3 choices .*: leave `choices` out"):
        measure(serve(choice_fault=fault, whole=whole), **SAMPLED)


def test_a_choice_that_is_missing_later_fails_all_choices_of_its_request(
    serve: Serve, measure: Measure
) -> None:
    server = serve()

    def later(number: int, body: dict[str, Any]) -> None:
        crowded = body.get("n", 1) > 1 and server.behaviour.in_flight > 4
        server.behaviour.choice_fault = "missing" if crowded else None

    server.behaviour.fault = later
    (group,) = measure(server, **SAMPLED).groups
    assert group.failed % 3 == 0
    assert group.failed > 0
    assert group.failures == {"malformed": group.failed}


@pytest.mark.sweep
def test_a_run_with_choices_is_kept_and_loaded(serve: Serve, measure: Measure) -> None:
    stored = measure(serve(), **SAMPLED).run
    loaded = rundir.load(stored.path)
    assert loaded.traits.choices == loaded.setting("choices") == 3
    names = [record.condition_id for record in loaded.conditions]
    assert names[:4] == [f"p0/as-served/b1/c{i}" for i in range(3)] + ["p0/as-served/b8/c0"]
    assert len({record.trials for record in loaded.conditions[:3]}) == 1
    tokens = sum(record.generated_tokens for record in loaded.conditions)
    assert tokens == 3 * 27 * 12


@pytest.mark.sweep
def test_an_interrupted_run_with_choices_goes_on(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detcheck.rundir import RunWriter
    from detcheck.runner import resume

    experiment, target = ask(
        endpoints=[serve().url], batch_sizes=(1, 4), completions=11, max_new_tokens=8, **SAMPLED
    )
    whole, calls = RunWriter.append_trial, []

    def killed(self: RunWriter, index: int, *args: Any, **kwargs: Any) -> None:
        calls.append(index)
        if len(calls) == 6:  # within the second trial: its first choice is not committed
            raise KeyboardInterrupt
        whole(self, index, *args, **kwargs)

    monkeypatch.setattr(RunWriter, "append_trial", killed)
    cut = run(experiment, target, tmp_path / "run")
    assert [record.trials for record in cut.conditions[:3]] == [1, 2, 2]
    monkeypatch.setattr(RunWriter, "append_trial", whole)
    done = resume(tmp_path / "run")
    assert done.complete
    (group,) = analyse(done).groups
    assert (group.completions, group.distinct_within_seed) == (33, 1)


def test_settings_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    url = "http://localhost:1/v1"
    with pytest.raises(UsageError, match="`choices` must be from 1 to 128, not 0"):
        Served(endpoints=(url,), choices=0)
    with pytest.raises(UsageError, match="Several `seeds` and several `choices`"):
        ask(endpoints=[url], seeds=(1, 2), temperature=1.0, choices=2)
    with pytest.raises(UsageError, match="budget cannot plan requests for several `choices`"):
        run(
            Experiment(kernels=("as-served",)),
            Served(endpoints=(url,), choices=2),
            tmp_path / "run",
            budget=Budget(60),
        )


@few("choices", [1, 3])
def test_the_verdict_names_the_choices_at_temperature_0(
    serve: Serve, measure: Measure, choices: int
) -> None:
    judged = judge(measure(serve(), choices=choices), GateOptions()).judged
    assert judged.choices == choices
    assert (", 3 choices, batch sizes" in dict(judged.facts())["asked"]) is (choices == 3)


@pytest.mark.parametrize("hidden", [0, 900])
def test_reasoning_that_no_choice_shows_is_counted(
    serve: Serve, measure: Measure, hidden: int
) -> None:
    analysis = measure(serve(whole=True, hidden_tokens=hidden), **SAMPLED)
    unseen = sum(record.unseen_tokens for record in analysis.run.conditions)
    assert unseen == 27 * hidden


@pytest.mark.sweep
def test_a_control_of_more_choices_had_another_load(serve: Serve, tmp_path: Path) -> None:
    runs = {}
    for choices in (1, 3):
        experiment, target = ask(
            endpoints=[serve().url], batch_sizes=(1, 8), completions=27, max_new_tokens=12,
            temperature=0.8, choices=choices,
        )  # fmt: skip
        runs[choices] = analyse(run(experiment, target, tmp_path / str(choices)))
    check_control(runs[1], runs[3])
    with pytest.raises(UsageError, match=r"more choices \(3\) than the run \(1\)"):
        check_control(runs[3], runs[1])


@pytest.mark.sweep
def test_a_baseline_takes_no_choices(serve: Serve, measure: Measure) -> None:
    with pytest.raises(UsageError, match="A baseline holds one answer to each seed"):
        baseline_of(measure(serve(), **SAMPLED), ("as-served",))


@pytest.mark.sweep
def test_the_report_names_choices(serve: Serve, measure: Measure) -> None:
    from detcheck.report.markdown import render
    from detcheck.report.view import build_view

    text = render(build_view(measure(serve(), **SAMPLED)), {})
    assert "You asked for 3 samples and got 3 from the choices and 0 from the system" in text
    assert "Choices and loads" in text
    assert "--choices 3" in text


@pytest.mark.parametrize(("seen", "enough"), [(32, True), (24, True), (23, False)])
def test_counters_of_a_server_count_each_choice(seen: int, enough: bool) -> None:
    record = ConditionRecord("p0/as-served/b8/c0", 0, "as-served", 8, 8, rows_max=seen)
    record.evidence_source = SERVER_COUNTERS
    found = evidence([record], choices=4)
    assert (found.observed, found.asked_max) == (enough, 32)
    assert "other clients" not in found.sentence
    assert "other clients" in evidence([replace(record, rows_max=33)], choices=4).sentence


@pytest.mark.parametrize(("seen", "enough"), [(20, True), (15, True), (14, False)])
def test_fillers_of_mixed_traffic_have_one_choice(seen: int, enough: bool) -> None:
    record = ConditionRecord("p0/as-served/b8/c0", 0, "as-served", 8, 8, rows_max=seen)
    record.evidence_source = SERVER_COUNTERS
    found = evidence([record], choices=4, traffic="mixed")  # four probes and four fillers
    assert (found.observed, found.asked_max) == (enough, 20)
    assert ("where 20 were asked" in found.sentence) is not enough


def test_streams_are_one_for_each_request() -> None:
    record = ConditionRecord("p0/as-served/b8/c0", 0, "as-served", 8, 8, rows_max=8)
    record.evidence_source = STREAMED_TOKENS
    assert evidence([record], choices=4).observed


def test_no_check_without_requests_for_several_choices() -> None:
    assert list(ChoicesTally().checks()) == []


@pytest.mark.parametrize(
    ("texts", "holds", "words"),
    [
        ("aaa", False, "all choices are equal in each of 1 request"),
        ("aab", None, "some choices are equal in 1 of 1 request"),
        ("abc", True, "1 request got choices that differ"),
    ],
)
def test_equal_choices_are_counted(texts: str, holds: bool | None, words: str) -> None:
    tally = ChoicesTally()
    tally.add(Question("Hi", 8, 0.8, 0), [Completion(text, "stop") for text in texts])
    (check,) = tally.checks()
    assert check.holds is holds
    assert words in check.sentence


def test_equal_choices_of_a_sure_model_are_no_fault() -> None:
    """The twins: an improbable answer, and one sure answer beside an improbable one."""
    sure = TopTwo((5,), (9.0,), (-0.1,))
    unsure = TopTwo((5, 6), (0.1, 0.2), (-0.6, -0.5))
    empty = Completion("", "stop", (2,), top_two=sure)
    tally = ChoicesTally()
    tally.add(Question("Hi", 8, 0.8, 0), [empty] * 3)
    (check,) = tally.checks()
    assert check.holds is None
    assert "in each of 1 request, and empty: no proof of a fault" in check.sentence
    tally.add(Question("Hi", 8, 0.8, 1), [Completion("ab", "stop", (3, 4), top_two=unsure)] * 3)
    (check,) = tally.checks()
    assert check.holds is False
    assert "the server clones one sample" in check.sentence
    assert "empty" not in check.sentence


@pytest.mark.parametrize(("ignores_seed", "often"), [(True, "1 time."), (False, None)])
def test_answers_that_came_back_once_are_counted_in_the_singular(
    serve: Serve, measure: Measure, ignores_seed: bool, often: str | None
) -> None:
    analysis = measure(serve(ignores_seed=ignores_seed), temperature=0.8, choices=2)
    reasons = " ".join(judge(analysis, GateOptions()).reasons)
    assert "1 times" not in reasons
    assert ("came back" in reasons) is (often is not None)
    assert often is None or f"the most common came back {often}" in reasons
