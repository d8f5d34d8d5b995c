"""A server that gives one text to every request once the checks are over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sweeps import few

from detcheck.analysis import Analysis
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.engines.openai.later_answers import DIFFERENT_PROMPTS, LaterAnswers
from detcheck.evidence import SERVER_COUNTERS, EndpointCheck, LoadEvidence
from detcheck.gate import PASS, GateOptions, judge

from .behaviour import Canned
from .server import ToyServer, prompt_of

OVERLOADED = "Service temporarily overloaded. Please try again in 3 seconds."
PROMPT = "Tell me about Richard Feynman"
Measure = Callable[..., Analysis]
Serve = Callable[..., ToyServer]


@pytest.fixture(autouse=True)
def _batches_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that arrives at once shows no batch: its counters do."""
    monkeypatch.setattr(
        "detcheck.engines.openai.engine.agreed",
        lambda counted, streams: LoadEvidence(SERVER_COUNTERS, len(streams)),
    )


def once_asked(text: Callable[[int], str] = lambda number: OVERLOADED) -> Canned:
    """From the first request of the experiment on, every request gets `text`."""
    begun = []

    def canned(number: int, body: dict[str, Any], in_flight: int) -> str | None:
        if prompt_of(body) == PROMPT and body["max_tokens"] == 20:
            begun.append(number)
        return text(number) if begun else None

    return canned


def in_company(number: int, body: dict[str, Any], in_flight: int) -> str | None:
    """Only requests with others in flight get the text."""
    return OVERLOADED if in_flight > 1 else None


@few(
    ("canned", "sizes"),
    [
        (once_asked(), (1, 8)),
        (once_asked(lambda number: f"{OVERLOADED} Request id 7f{number}."), (8,)),
        (once_asked(lambda number: "I'm sorry, but I can't help with that."), (1, 8)),
        (once_asked(lambda number: "Ok."), (1, 8)),
        (in_company, (4, 8)),
    ],
    every=3,
)
def test_one_text_after_the_checks_does_not_pass(
    serve: Serve, measure: Measure, canned: Canned, sizes: tuple[int, ...]
) -> None:
    analysis = measure(
        serve(canned=canned, token_s=0.01), batch_sizes=sizes, completions=48, max_new_tokens=20
    )
    verdict = judge(analysis)
    assert verdict.value != PASS
    assert "different prompts got one answer" in " ".join(verdict.reasons)
    assert verdict.value == (FAIL if analysis.groups[0].distinct > 1 else INCONCLUSIVE)


def test_a_sound_server_passes_and_was_asked_again(serve: Serve, measure: Measure) -> None:
    server = serve()
    analysis = measure(server, batch_sizes=(1, 8), completions=48, max_new_tokens=20)
    assert judge(analysis).value == PASS, judge(analysis).reasons
    (check,) = [one for one in analysis.run.endpoint_checks if one.name == DIFFERENT_PROMPTS]
    assert check.holds
    assert "and 20 more during the run" in check.sentence
    asked = [prompt_of(body) for body in server.behaviour.seen]
    assert asked[-1] != PROMPT, "the last requests are those of the checks"


def test_a_canned_answer_to_the_experiment_alone_cannot_be_told(
    serve: Serve, measure: Measure
) -> None:
    def canned(number: int, body: dict[str, Any], in_flight: int) -> str | None:
        return OVERLOADED if prompt_of(body) == PROMPT else None

    verdict = judge(measure(serve(canned=canned), completions=48, max_new_tokens=20))
    assert verdict.value == PASS


def test_requests_that_fail_decide_nothing(serve: Serve, measure: Measure) -> None:
    def fault(number: int, body: dict[str, Any]) -> str | None:
        return "500" if number > 12 and prompt_of(body) != PROMPT else None

    analysis = measure(serve(fault=fault), completions=48, max_new_tokens=20)
    assert judge(analysis).value == PASS, judge(analysis).reasons


def test_samples_need_three_prompts() -> None:
    for number, shared in ((2, ""), (3, "one text")):
        later = LaterAnswers({}, fewest=3)
        later.judge([(prompt, "one text") for prompt in "ABC"[:number]], ())
        assert later.shared == shared


@pytest.mark.parametrize(
    ("answers", "own", "found"),
    [
        ([("A", "one text"), ("B", "one text")], (), "one text"),
        ([("A", "one text"), ("B", "two"), ("C", "one text 12:05")], (), "one text"),
        ([("A", "one text here"), ("B", "two")], ("One text here, and more.",), "one text here"),
        ([("A", "one"), ("B", "two")], ("one more",), ""),  # too short a beginning
        ([("A", "one"), ("B", "two")], ("One.",), ""),
        ([("A", "one text"), ("A", "one text")], (), ""),
        ([("A", "known"), ("B", "known")], (), "known"),  # B had another answer
        ([("A", "known"), ("D", "known")], (), ""),  # as before the experiment
        ([("A", "one text"), ("D", "one text")], (), ""),  # not told apart before it either
        ([("A", "12"), ("B", "13")], (), ""),
        ([], ("one",), ""),
    ],
)
def test_an_answer_to_two_prompts(
    answers: list[tuple[str, str]], own: tuple[str, ...], found: str
) -> None:
    later = LaterAnswers({"A": "known", "B": "other", "C": "third", "D": "known"})
    later.judge(answers, own)
    assert later.shared == found
    first = EndpointCheck(DIFFERENT_PROMPTS, True, "4 got different answers")
    (check,) = later.joined([first])
    assert check.holds is not bool(found)
    assert (check == first) is not bool(answers)


@pytest.mark.sweep
def test_fields_that_are_not_compared_are_no_whole_answer(serve: Serve, measure: Measure) -> None:
    analysis = measure(serve(musings=True), completions=48, max_new_tokens=20)
    assert judge(analysis).value == PASS
    verdict = judge(analysis, GateOptions(require_whole_answer=True))
    assert verdict.value == INCONCLUSIVE
    assert "does not know and does not compare: musings" in " ".join(verdict.reasons)


def test_answers_without_a_count_of_tokens_may_be_no_whole_ones(
    serve: Serve, measure: Measure
) -> None:
    analysis = measure(serve(usage=False, token_ids=False), completions=48, max_new_tokens=20)
    assert judge(analysis).value == PASS
    verdict = judge(analysis, GateOptions(require_whole_answer=True))
    assert verdict.value == INCONCLUSIVE
    assert "came without a count of their tokens" in " ".join(verdict.reasons)


@pytest.mark.sweep
def test_a_server_that_left_them_unanswered_is_asked_at_the_end_only(
    serve: Serve, measure: Measure
) -> None:
    def fault(number: int, body: dict[str, Any]) -> str | None:
        return "500" if number > 12 and prompt_of(body) != PROMPT else None

    server = serve(fault=fault)
    measure(server, batch_sizes=(1, 4, 8), completions=48, max_new_tokens=20)
    asked = [prompt_of(body) for body in server.behaviour.seen]
    later = asked[asked.index(PROMPT) :]
    assert sum(prompt != PROMPT for prompt in later) == 4 + 8
