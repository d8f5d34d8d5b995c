"""What ends a reply: reasons that say so, words that say nothing, and reasons to give up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detcheck.engines.openai.endings import UNTOLD, finish_reason, gave_up
from detcheck.engines.openai.failures import ABORTED, MALFORMED, TRUNCATED, Failure
from detcheck.engines.openai.reply import Reply

NO_REASONS = [
    *(None, "", " ", "null", "None", "FINISH_REASON_UNSPECIFIED", False, True, 0, 1, 0.0),
    *({}, [], "N/A", "-", {"type": None}, "FinishReasonNone", "not_stopped", "UNSET", "ongoing"),
]


def folded(*reasons: Any, done: bool = False) -> Reply:
    """A reply of one token a chunk, with these finish reasons."""
    reply = Reply(max_new_tokens=8)
    for number, reason in enumerate(reasons):
        choice = {"delta": {"content": f" {number}"}, "finish_reason": reason}
        reply.add({"id": "r", "choices": [choice]})
    reply.done = done
    return reply


def failure_of(reply: Reply) -> Failure:
    with pytest.raises(Failure) as caught:
        reply.completion()
    return caught.value


@pytest.mark.parametrize("reason", NO_REASONS)
def test_value_without_a_reason_ends_nothing(reason: Any) -> None:
    assert finish_reason(reason) is None
    assert failure_of(folded(reason, reason)).kind == TRUNCATED


@pytest.mark.parametrize("reason", NO_REASONS)
def test_done_ends_a_reply_without_a_reason(reason: Any) -> None:
    completion = folded(reason, reason, done=True).completion()
    assert (completion.text, completion.finish_reason) == (" 0 1", UNTOLD)


@pytest.mark.parametrize("reason", ["stop", "length", "eos_token", "MAX_TOKENS", "end_turn", "x"])
def test_any_other_word_is_an_end(reason: str) -> None:
    assert folded("", reason).completion().finish_reason == reason


def test_reason_of_sglangs_own_api_is_an_object() -> None:
    assert folded(None, {"type": "length", "length": 2}).completion().finish_reason == "length"


@pytest.mark.parametrize(
    "ending",
    [
        {"choices": [{"delta": {}, "finishReason": "stop"}]},
        {"choices": [{"delta": {"finish_reason": "stop"}}]},
        {"choices": [{"delta": {}, "finish_details": {"type": "stop", "stop": "</s>"}}]},
        {"choices": [{"delta": {}, "stop_reason": "stop"}]},
        {"choices": [{"delta": {}, "finish_reason": {"reason": "stop"}}]},
        {"choices": [{"delta": {}}], "finish_reason": "stop"},
        {"choices": [], "finish_reason": "stop"},
    ],
)
def test_reason_is_read_wherever_it_stands(ending: dict[str, Any]) -> None:
    reply = folded(None)
    reply.add(ending)
    assert (reply.completion().finish_reason, reply.unread) == ("stop", set())
    for done in (False, True):
        reply = folded(None, done=done)
        reply.add(json.loads(json.dumps(ending).replace('"stop"', '"abort"')))
        assert failure_of(reply).kind == ABORTED


def test_provider_behind_a_proxy_that_gave_up() -> None:
    for native, kind in (("error", ABORTED), ("STOP", None), (None, None)):
        reply = folded(None)
        choice = {"delta": {}, "finish_reason": "stop", "native_finish_reason": native}
        reply.add({"choices": [choice]})
        if kind is None:
            assert reply.completion().finish_reason == "stop"
        else:
            assert failure_of(reply).kind == kind


def test_stop_token_of_vllm_is_no_reason() -> None:
    reply = folded(None)
    reply.add({"choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": 151645}]})
    assert reply.completion().finish_reason == "stop"


def test_another_reason_after_the_last_text_is_the_end() -> None:
    assert folded("busy", "busy", "length").completion().finish_reason == "length"
    assert failure_of(folded("busy", "length", "busy")).kind == TRUNCATED
    assert failure_of(folded("length", "busy", "length")).kind == TRUNCATED


def test_reason_before_the_last_text_is_no_end() -> None:
    """A server that says `stop` in every chunk does not show when it is cut."""
    assert failure_of(folded("stop", "stop", "stop")).kind == TRUNCATED
    assert failure_of(folded("stop", None)).kind == TRUNCATED
    assert folded("stop", "stop", done=True).completion().finish_reason == "stop"
    assert folded("stop", None, done=True).completion().finish_reason == UNTOLD


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "abort",
            "aborted",
            "error",
            "cancelled",
            "canceled",
            "CANCELLED",
            "timeout",
            "timed_out",
        ),
        *("server_error", "InternalError", "insufficient_system_resource", "engine_failure"),
        *("max_time", "rateLimit", "throttled", "quota_exceeded", "rejected", "INTERNAL"),
        *("time_limit", "expired", "modelUnloaded", "userStopped", "incomplete", "client_closed"),
        *("connection_lost", "worker_died", "server_busy", "engine dead"),
        *("network-error", "preempted", "deadline_exceeded", "interrupted", "OOM", "overloaded"),
    ],
)
def test_server_that_gave_up_has_aborted_the_request(reason: str) -> None:
    assert gave_up(reason)
    for done in (False, True):
        failure = failure_of(folded(None, reason, done=done))
        assert failure.kind == ABORTED
        assert reason in failure.phrase


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls", "room", "x"])
def test_other_ends_are_answers(reason: str) -> None:
    assert not gave_up(reason)


def test_stream_without_choices_is_no_answer() -> None:
    reply = Reply(max_new_tokens=8)
    reply.add({"id": "r", "choices": []})
    assert failure_of(reply).kind == TRUNCATED
    reply.done = True
    assert failure_of(reply).kind == MALFORMED


def test_empty_answer_that_ends_is_an_answer() -> None:
    reply = Reply(max_new_tokens=8)
    reply.add({"choices": [{"delta": {"role": "assistant"}, "finish_reason": "stop"}]})
    assert reply.completion().text == ""
