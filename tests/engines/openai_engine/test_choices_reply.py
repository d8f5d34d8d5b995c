"""A reply with several choices: they are told apart by their index, and faults are named."""

from __future__ import annotations

from typing import Any

import pytest

from detcheck.engines.openai.choices import ChoicesReply, new_reply
from detcheck.engines.openai.failures import MALFORMED, TRUNCATED, Failure
from detcheck.engines.openai.reply import Reply


def piece(index: Any, text: str, **more: Any) -> dict[str, Any]:
    """A chunk with a piece of one choice."""
    return {"choices": [{"index": index, "text": text, **more}]}


def test_pieces_of_choices_are_told_apart_by_their_index() -> None:
    reply = new_reply(8, 2)
    reply.add(piece(1, "b"))
    reply.add(piece(0, "a"))
    reply.add(piece(1, "B", finish_reason="stop"))
    reply.add(piece(0, "A", finish_reason="length"))
    reply.done = True
    found = reply.completions()
    assert [(one.text, one.finish_reason) for one in found] == [("aA", "length"), ("bB", "stop")]


def test_one_choice_is_a_plain_reply() -> None:
    assert type(new_reply(8, 1)) is Reply
    assert isinstance(new_reply(8, 2), ChoicesReply)


@pytest.mark.parametrize("index", [2, -1, None, "0", True])
def test_an_index_that_was_not_asked_for_fails_the_request(index: Any) -> None:
    with pytest.raises(Failure, match=r"a choice has the index .*, and 2 were asked for"):
        new_reply(8, 2).add(piece(index, "a"))


def test_two_whole_choices_of_one_index_fail_the_request() -> None:
    message = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
    with pytest.raises(Failure, match="two choices have the index 0"):
        new_reply(8, 2).add({"choices": [message, message]})


def test_a_text_that_came_twice_under_one_index_fails_the_request() -> None:
    ended = [piece(index, "a", finish_reason="length")["choices"][0] for index in (0, 1, 1)]
    assert new_reply(8, 2).add({"choices": ended[:2]})
    with pytest.raises(Failure, match="two choices have the index 1"):
        new_reply(8, 2).add({"choices": ended})


def test_pieces_of_one_choice_in_one_chunk_are_joined() -> None:
    reply = new_reply(8, 2)
    ended = piece(0, "b", finish_reason="stop")["choices"]
    reply.add({"choices": [*piece(0, "a", finish_reason="")["choices"], *ended]})
    assert reply.choices[0].text == "ab"


@pytest.mark.parametrize(("done", "kind"), [(True, MALFORMED), (False, TRUNCATED)])
def test_a_missing_choice_is_named(done: bool, kind: str) -> None:
    reply = new_reply(8, 3)
    reply.add(piece(0, "a", finish_reason="stop"))
    reply.add(piece(2, "c", finish_reason="stop"))
    reply.done = done
    with pytest.raises(Failure, match=r"holds 2 of the 3 choices .*, and none of index 1") as found:
        reply.completions()
    assert found.value.kind == kind


def test_a_choice_that_was_cut_fails_the_request() -> None:
    reply = new_reply(8, 2)
    reply.add(piece(0, "a", finish_reason="stop"))
    reply.add(piece(1, "b"))
    with pytest.raises(Failure, match="without a finish reason"):
        reply.completions()


def test_a_reply_without_any_choice_says_so() -> None:
    reply = new_reply(8, 2)
    reply.add({"note": "later"})
    reply.done = True
    with pytest.raises(Failure, match="the reply holds no answer, but"):
        reply.completions()


def test_tokens_that_are_counted_and_not_shown_are_found() -> None:
    reply = new_reply(8, 2)
    for index in (0, 1):
        reply.add(piece(index, "a b", token_ids=[1, 2], finish_reason="stop"))
    reply.add({"choices": [], "usage": {"completion_tokens": 6}})  # two may end the sequences
    assert reply.unseen_tokens == 0
    reply.add({"choices": [], "usage": {"completion_tokens": 16}})
    assert reply.unseen_tokens == 10


@pytest.mark.parametrize(("counted", "unseen"), [(6, 0), (8, 2), (9, 3)])
def test_unseen_tokens_are_shared_out_if_the_server_gives_no_ids(counted: int, unseen: int) -> None:
    reply = new_reply(8, 2)
    for index in (0, 1):
        reply.add(piece(index, "ab", finish_reason="stop"))  # two tokens at most, and an end
    reply.add_whole({"choices": [], "usage": {"completion_tokens": counted}})
    assert reply.unseen_tokens == unseen
    found = [one.unseen_tokens for one in reply.completions()]
    assert found == [unseen - unseen // 2, unseen // 2]
    assert not reply.hidden


@pytest.mark.parametrize(("counted", "hidden"), [(2, False), (3, False), (40, True)])
def test_an_empty_choice_whose_tokens_were_counted_is_hidden(counted: int, hidden: bool) -> None:
    reply = new_reply(8, 2)
    reply.add(piece(0, "a", finish_reason="stop"))
    reply.add(piece(1, "", finish_reason="stop"))
    reply.add_whole({"choices": [], "usage": {"completion_tokens": counted}})
    assert reply.hidden is hidden


def test_reasoning_among_the_token_ids_is_seen() -> None:
    usage = {"completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 2}}
    for ids, unseen in ({"token_ids": [1, 2]}, 0), ({}, 2):
        reply = new_reply(8, 2)
        for index in (0, 1):
            reply.add(piece(index, "ab", finish_reason="stop", **ids))
        reply.add_whole({"choices": [], "usage": usage})
        assert reply.unseen_tokens == unseen
