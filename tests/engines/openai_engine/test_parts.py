"""Every part of an answer is read, and a part that is sent twice counts once."""

from __future__ import annotations

from typing import Any

import pytest

from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.engines.openai.parts import spoken
from detcheck.engines.openai.reply import Reply

THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}
ANSWER = {"type": "text", "text": "yes"}
CALL = {"index": 0, "id": "call_1", "type": "function"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "yes"}, "yes"),
        ({"content": [ANSWER]}, "yes"),
        ({"content": ["so", {"text": "yes"}]}, "soyes"),
        ({"content": [THINKING, ANSWER]}, "soyes"),
        ({"content": [{"type": "thinking", "thinking": "so"}, ANSWER]}, "soyes"),
        (
            {"content": [{"type": "output_text", "text": {"value": "yes", "annotations": []}}]},
            "yes",
        ),
        ({"reasoning_content": "so", "content": "yes"}, "soyes"),
        ({"text": "yes"}, "yes"),
        ({"text": "yes", "content": "yes"}, "yes"),
        ({"reasoning": {"content": "so"}, "content": "yes"}, "soyes"),
        ({"reasoning": "so", "content": "yes"}, "soyes"),
        ({"thinking": "so", "content": "yes"}, "soyes"),
        ({"content": None, "refusal": "no"}, "no"),
        ({"audio": {"id": "a", "transcript": "yes", "data": "UklGR"}}, "yesUklGR"),
        (
            {"tool_calls": [CALL | {"function": {"name": "f", "arguments": '{"a": 1}'}}]},
            'f{"a": 1}',
        ),
        ({"function_call": {"name": "f", "arguments": "1"}}, "f1"),
        ({"content": {"type": "text", "text": "yes"}}, "yes"),
        ({"content": 7}, ""),
        (None, ""),
        ("yes", "yes"),
        (
            {"tool_calls": [{"type": "custom", "id": "x", "custom": {"name": "f", "input": "1"}}]},
            "f1",
        ),
        (
            {
                "tool_calls": [
                    CALL | {"function": {"name": "f", "arguments": {"text": "a", "n": 1}}}
                ]
            },
            'f{"n":1,"text":"a"}',
        ),
        ({"tool_calls": [CALL | {"function": {"name": "f", "code": "1"}}]}, 'f{"code":"1"}'),
    ],
)
def test_text_of_a_message(message: Any, text: str) -> None:
    assert spoken(message).text == text


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning": "so", "reasoning_content": "so", "content": "yes"},
        {"reasoning": "so", "reasoning_details": [{"type": "reasoning.text", "text": "so"}]}
        | {"content": "yes"},
        {"reasoning_content": "so", "content": [THINKING, ANSWER]},
        {"content": [THINKING | {"text": "so"}, ANSWER]},
    ],
)
def test_reasoning_in_two_fields_counts_once(message: dict[str, Any]) -> None:
    assert spoken(message).text == "soyes"
    assert spoken(message).has_reasoning


def test_different_reasoning_in_two_fields_counts_twice() -> None:
    assert spoken({"reasoning": "so", "reasoning_content": "thus"}).text == "thusso"


def test_reasoning_and_answer_with_equal_text_both_count() -> None:
    assert spoken({"reasoning": "yes", "content": "yes"}).text == "yesyes"


def test_text_beside_an_equal_message_counts_once() -> None:
    assert spoken({"content": "yes"}, "yes").text == "yes"
    assert spoken({}, "yes").text == "yes"


def test_part_of_an_unknown_kind_counts_by_its_content() -> None:
    one, other = ({"type": "image_url", "image_url": {"url": url}} for url in ("a", "b"))
    assert spoken({"content": [one, ANSWER]}).text != spoken({"content": [other, ANSWER]}).text
    assert spoken({"content": [one]}).text == '{"image_url":{"url":"a"}}'


def test_labels_and_cipher_text_are_no_part_of_the_answer() -> None:
    encrypted = {"type": "reasoning.encrypted", "data": "new every time", "id": "x"}
    labelled = {"type": "text", "text": "yes", "id": "rs_1", "signature": "new every time"}
    assert spoken({"content": [encrypted, labelled], "id": "m", "role": "r"}).text == "yes"
    assert spoken({"content": [labelled]}).unread == ()


def test_unknown_field_with_content_is_named() -> None:
    said = spoken({"content": "yes", "pondering": "so", "empty": None, "number": 3})
    assert (said.text, said.unread) == ("yes", ("pondering",))


@pytest.mark.parametrize(
    ("message", "unread"),
    [
        ({"content": "yes", "annotations": [{"url_citation": {"url": "a"}}]}, ("annotations",)),
        ({"content": [ANSWER | {"citations": [3]}]}, ("citations",)),
        ({"content": [ANSWER | {"language": "en"}]}, ("language",)),
        ({"content": 7}, ("content",)),
        (
            {"content": "yes", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
            ("reasoning.encrypted",),
        ),
        (
            {"content": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, ANSWER]},
            ("encrypted_content",),
        ),
        ({"content": "yes", "provider_specific_fields": {"refusal": None}}, ()),
        (
            {"content": "yes", "provider_specific_fields": {"refusal": "no"}},
            ("provider_specific_fields",),
        ),
        ({"content": "yes", "annotations": [], "audio": None, "finish_reason": "stop"}, ()),
    ],
)
def test_content_beside_the_text_is_named(message: dict[str, Any], unread: tuple[str, ...]) -> None:
    assert spoken(message).unread == unread


def test_nesting_without_end_is_no_answer() -> None:
    deep: Any = "so"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(Failure) as caught:
        spoken({"content": deep})
    assert caught.value.kind == MALFORMED


@pytest.mark.parametrize("field", ["delta", "message"])
def test_answers_that_differ_in_their_thinking_only_are_two(field: str) -> None:
    fingerprints = set()
    for thought in ("so", "thus"):
        reply = Reply(max_new_tokens=8)
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]}, ANSWER]
        reply.add({"choices": [{field: {"content": parts}, "finish_reason": "stop"}]})
        fingerprints.add(reply.completion().fingerprint)
    assert len(fingerprints) == 2
