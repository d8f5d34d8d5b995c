from __future__ import annotations

from typing import Any

import pytest

from detcheck.engines.openai.complaints import parse_json, server_words
from detcheck.engines.openai.failures import ABORTED, MALFORMED, TRUNCATED, Failure
from detcheck.engines.openai.reply import Reply


def chunk(text: str = "", *, reason: str | None = None, **choice: Any) -> dict[str, Any]:
    return {"id": "r", "choices": [{"delta": {"content": text}, "finish_reason": reason, **choice}]}


def entry(token: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    tops = [{"token": text, "logprob": value} for text, value in ((token, logprob), *others)]
    return {"token": token, "logprob": logprob, "top_logprobs": tops}


def content(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"content": list(entries)}


def reply(*chunks: dict[str, Any], most: int = 8) -> Reply:
    folded = Reply(most)
    for one in chunks:
        folded.add(one)
    return folded


def test_ids_text_and_candidates_of_a_stream() -> None:
    answer = reply(
        chunk("A", token_ids=[5], logprobs=content(entry("A", -0.5, ("B", -0.75)))),
        chunk(" b", token_ids=[6], logprobs=content(entry(" b", -0.1, (" c", -2.0)))),
        chunk(reason="length"),
        {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 9}},
    ).completion()
    assert (answer.text, answer.token_ids, answer.token_ends) == ("A b", (5, 6), (1, 3))
    assert answer.fingerprint.startswith("sha256:")
    assert answer.top_two is not None
    assert answer.top_two.gaps == (0.25, 1.9)
    assert answer.top_two.runner_up_token_ids is None
    assert answer.top_two.runner_up_texts == ("B", " c")


def test_text_is_the_identity_if_ids_are_missing_or_incomplete() -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 3}}
    for ids in ({}, {"token_ids": [5, 6]}):
        answer = reply(chunk("A b c", reason="stop", **ids), usage).completion()
        assert answer.token_ids is None
        assert answer.fingerprint.startswith("sha256-text:")


def test_ids_of_candidates_are_used() -> None:
    one = entry("A", -0.5, ("B", -0.75))
    one["id"] = one["top_logprobs"][0]["id"] = 3
    one["top_logprobs"][1]["id"] = 4
    answer = reply(chunk("A", reason="stop", logprobs=content(one))).completion()
    assert answer.token_ids == (3,)
    assert answer.top_two is not None
    assert answer.top_two.runner_up_token_ids == (4,)


def test_tokens_that_share_a_chunk_are_told_apart_by_their_text() -> None:
    both = content(entry("One", -1.0, ("x", -2.0)), entry(" two", -1.0, ("y", -2.0)))
    answer = reply(chunk("One two", reason="stop", token_ids=[1, 2], logprobs=both)).completion()
    assert answer.token_ends == (3, 7)


def test_token_of_half_a_character_ends_with_the_text() -> None:
    answer = reply(
        chunk("", token_ids=[1], logprobs=content(entry("\ufffd", -1.0, ("x", -2.0)))),
        chunk("é", reason="stop", token_ids=[2], logprobs=content(entry("\ufffd", -1.0))),
    ).completion()
    assert answer.token_ends == (0, 1)


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ([chunk("a")], TRUNCATED),
        ([chunk("a"), {"error": {"message": "out of memory"}}], ABORTED),
        ([chunk("a", reason="abort")], ABORTED),
        ([{"choices": "none"}], MALFORMED),
        ([chunk("a", token_ids=["x"])], MALFORMED),
        ([chunk("a", token_ids=[-1])], MALFORMED),
        ([chunk("a", token_ids=list(range(500)))], MALFORMED),
    ],
)
def test_reply_without_an_answer_fails_by_its_kind(chunks: list[dict[str, Any]], kind: str) -> None:
    with pytest.raises(Failure) as caught:
        reply(*chunks).completion()
    assert caught.value.kind == kind


@pytest.mark.parametrize("data", [b"[1]", b"nonsense", b"\xff\xfe{", b'"a"', b"[" * 100_000])
def test_reply_that_is_no_json_object_is_malformed(data: bytes) -> None:
    with pytest.raises(Failure) as caught:
        parse_json(data)
    assert caught.value.kind == MALFORMED


def test_half_a_surrogate_pair_is_kept() -> None:
    assert parse_json(rb'{"a": "\ud83d"}') == {"a": "\ud83d"}


def test_secrets_are_removed_from_text_and_errors() -> None:
    folded = Reply(8, ("sk-secret",))
    folded.add(chunk("my key is sk-secret!"))
    assert "sk-secret" not in folded.text
    with pytest.raises(Failure) as caught:
        folded.add({"error": {"message": "bad key sk-secret"}})
    assert "sk-secret" not in str(caught.value)


def test_secret_in_pieces_or_beside_the_text_is_removed() -> None:
    folded = Reply(16, ("sk-secret",))
    for piece in ("my ", "sk-", "sec", "ret"):
        told = content(entry(piece, -0.5, ("sk-secret", -0.75)))
        folded.add(chunk(piece, logprobs=told) | {"system_fingerprint": "fp sk-secret"})
    folded.add(chunk(reason="stop sk-secret"))
    answer = folded.completion()
    assert answer.text == "my [redacted]"
    assert answer.token_ends is None
    assert "sk-secret" not in f"{answer} {folded.system_fingerprint} {folded.reply_id}"


def test_a_runner_up_that_is_a_secret_is_not_kept() -> None:
    folded = Reply(8, ("sk-secret",))
    told = content(entry("A", -0.5, ("sk-secret", -0.75)))
    folded.add(chunk("A", reason="stop", logprobs=told))
    answer = folded.completion()
    assert answer.top_two is not None
    assert answer.top_two.runner_up_texts == ("[redacted]",)


@pytest.mark.parametrize("told", [-1, 2**31, 2**80, 1.5, True, "9"])
def test_impossible_count_of_tokens_is_left_out(told: Any) -> None:
    folded = reply(chunk("A", reason="stop"), {"choices": [], "usage": {"completion_tokens": told}})
    assert folded.num_tokens == 1


@pytest.mark.parametrize(
    ("chunks", "hidden"),
    [
        ([chunk(reason="length")], True),
        ([chunk(reason="tool_calls")], True),
        ([chunk(reason="stop"), {"usage": {"completion_tokens": 9}}], True),
        ([chunk(reason="stop"), {"usage": {"completion_tokens": 1}}], False),
        ([chunk(reason="stop")], False),
        ([chunk("A", reason="length"), {"usage": {"completion_tokens": 9}}], False),
        ([chunk(token_ids=[5], reason="length")], False),
    ],
)
def test_reply_that_shows_none_of_its_tokens_is_hidden(
    chunks: list[dict[str, Any]], hidden: bool
) -> None:
    assert reply(*chunks).hidden is hidden


def test_error_that_is_nested_too_deeply_has_no_words() -> None:
    data = parse_json(b'{"error": ' + b"[" * 1010 + b"]" * 1010 + b"}")
    assert server_words(data) == ""
    assert server_words({"error": [{"msg": "no"}]}) == '[{"msg": "no"}]'


def choice(index: int | None, text: str, **fields: Any) -> dict[str, Any]:
    numbered = {} if index is None else {"index": index}
    return {**numbered, "delta": {"content": text}, "finish_reason": None, **fields}


@pytest.mark.parametrize(
    "chunks",
    [
        [{"choices": [choice(0, "A"), choice(1, "B")]}],
        [{"choices": [choice(0, "A")]}, {"choices": [choice(1, "B")]}],
        [{"choices": [choice(None, "A"), choice(None, "B")]}],
        [{"choices": [{"index": n, "message": {"content": "A"}} for n in range(4)]}],
    ],
)
def test_a_reply_of_several_answers_is_refused(chunks: list[dict[str, Any]]) -> None:
    with pytest.raises(Failure, match="several choices, and one was asked for") as failed:
        reply(*chunks)
    assert failed.value.kind == MALFORMED


def test_several_pieces_of_one_answer_in_one_chunk_are_all_read() -> None:
    pieces = {"choices": [choice(0, "A "), choice(0, "b", finish_reason="stop")]}
    assert reply(pieces).completion().text == "A b"
    assert reply({"choices": [choice(1, "A", finish_reason="stop")]}).completion().text == "A"


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        ({"dead": True, "reason": "engine dead"}, ', but {"dead": true, "reason": "engine dead'),
        ({"base_resp": {"status_msg": "rate limit"}, "choices": None}, "rate limit"),
        ({"id": "x", "key": "sk-secret"}, "[redacted]"),
        ({"usage": {"completion_tokens": 2}, "choices": []}, "there are no choices in it"),
        ({}, "there are no choices in it"),
    ],
)
def test_an_object_that_is_no_answer_is_quoted(instead: dict[str, Any], words: str) -> None:
    folded = Reply(8, secrets=("sk-secret",))
    folded.add_whole(instead)
    with pytest.raises(Failure) as failed:
        folded.completion()
    assert failed.value.kind == MALFORMED
    assert words in failed.value.phrase
    assert "sk-secret" not in failed.value.phrase


def test_an_error_in_a_list_of_one_is_an_error() -> None:
    with pytest.raises(Failure, match="engine dead"):
        reply(parse_json(b'[{"error": {"message": "engine dead"}}]'))


def whole(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def test_a_whole_message_after_the_stream_adds_what_the_stream_left_out() -> None:
    texts = {
        reply(chunk("A "), chunk("b"), whole(content="A b", reasoning=why)).completion().text
        for why in ("so", "thus")
    }
    assert texts == {"A bso", "A bthus"}
    assert reply(chunk("A "), chunk("b"), whole(content="A b")).completion().text == "A b"
    with pytest.raises(Failure, match="differ"):
        reply(chunk("A "), chunk("b"), whole(content="A c", reasoning="so"))
    ahead = {"choices": [{"index": 0, "message": {"content": "A b"}, "finish_reason": None}]}
    with pytest.raises(Failure, match="differ"):  # `b` is still to come
        reply(chunk("A "), ahead)


def test_reasoning_beside_the_delta_counts_and_unknown_fields_are_named() -> None:
    one, other = (reply(chunk("A", reason="stop", reasoning=why)) for why in ("so", "thus"))
    assert one.completion().fingerprint != other.completion().fingerprint
    assert one.completion().text == "soA"
    odd = reply(chunk("A", reason="stop", musings="so", stop_reason="</s>", score=0.5))
    assert (odd.text, odd.unread) == ("A", {"musings"})
    assert not reply(chunk("A", reason="stop", stop_reason="</s>")).unread


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": {"completion_tokens": 43}},
        {"usage": {"completion_tokens": 43.0}},
        {"usage": {"completion_tokens": "43", "reasoning_tokens": 41}},
    ],
)
def test_usage_within_a_choice_is_read(fields: dict[str, Any]) -> None:
    assert reply(chunk("A", reason="stop", **fields)).completion().unseen_tokens == 41
    beside = {"x_groq": fields, **chunk("A", reason="stop")}
    assert reply(beside).completion().unseen_tokens == 41


def test_a_count_of_zero_tokens_says_nothing() -> None:
    last = {"choices": [], "usage": {"completion_tokens": 0}}
    assert reply(chunk("A", reason="stop", token_ids=[5]), last).completion().token_ids == (5,)


def test_token_ids_within_a_delta_are_read() -> None:
    pieces = [{"delta": {"content": text, "token_ids": [n]}} for n, text in enumerate("ab")]
    folded = reply(*({"choices": [one]} for one in pieces), chunk(reason="stop"))
    assert folded.completion().token_ids == (0, 1)
    assert not folded.unread


@pytest.mark.parametrize(
    ("usage", "unseen"),
    [
        ({"completion_tokens": 1, "thoughts_token_count": 42}, 42),
        ({"completion_tokens": 1, "completion_tokens_details": {"thinking_tokens": 42}}, 42),
        ({"prompt_tokens": 8, "total_tokens": 50}, 40),
        ({"prompt_tokens": 8, "total_tokens": 9}, 0),
        ({"total_tokens": 50}, 0),
        ({"prompt_tokens": 8, "total_tokens": "many"}, 0),
    ],
)
def test_other_names_of_what_was_counted(usage: dict[str, Any], unseen: int) -> None:
    answer = reply(chunk("A", reason="stop"), {"choices": [], "usage": usage}).completion()
    assert answer.unseen_tokens == unseen
