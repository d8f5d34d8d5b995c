"""An answer that a server says twice counts once; one that repeats itself is left as it is."""

from __future__ import annotations

from typing import Any

import pytest

from detcheck.engines.openai.candidates import Ranked
from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.engines.openai.pieces import Piece, covers_text, said_once, token_ends
from detcheck.engines.openai.reply import Reply


def text(pieces: list[Piece], counted: int | None = None) -> str:
    return "".join(piece.text for piece in said_once(pieces, counted))


def ranked(*tokens: str) -> tuple[Ranked, ...]:
    return tuple(Ranked(token, None, -1.0, 1.0, "x", None) for token in tokens)


@pytest.mark.parametrize(
    ("pieces", "counted"),
    [
        ([Piece("a"), Piece("b"), Piece("ab")], None),
        ([Piece("a"), Piece("b"), Piece("ab")], 2),
        ([Piece("a", (1,)), Piece("b", (2,)), Piece("ab")], None),
        ([Piece("a", (1,)), Piece("b", (2,)), Piece("ab")], 3),  # end of sequence counted
        ([Piece("a", (1,)), Piece("b", (2,)), Piece("ab", (1, 2))], 2),
        ([Piece("a", (1,)), Piece("b", (2,)), Piece("ab", (1, 2))], None),
        ([Piece("a", (), ranked("a")), Piece("b", (), ranked("b")), Piece("ab")], 2),
        ([Piece("ab", (1, 2)), Piece("ab")], 2),
        ([Piece("a"), Piece("ab"), Piece("ab c")], None),
        ([Piece("ab"), Piece("ab")], 1),
        ([Piece("a"), Piece("ab"), Piece("ab c"), Piece("ab c")], None),
    ],
)
def test_whole_text_that_is_sent_again_counts_once(pieces: list[Piece], counted: int) -> None:
    assert text(pieces, counted) == ("ab c" if pieces[-1].text == "ab c" else "ab")


@pytest.mark.parametrize(
    ("pieces", "counted"),
    [
        ([Piece("ha", (1,)), Piece("ha", (1,))], 2),
        ([Piece("ha"), Piece("ha")], 2),
        ([Piece("ha"), Piece("ha")], None),
        ([Piece("a", (1,)), Piece("b", (2,)), Piece("ab", (3,))], 3),
        ([Piece("ab", (1, 2)), Piece("ab", (1, 2))], 4),
        ([Piece("a"), Piece("ab")], None),
        ([Piece("a"), Piece("a"), Piece("a")], None),
        ([Piece("!"), Piece("!"), Piece("!!", (3,))], 3),
    ],
)
def test_answer_that_repeats_itself_is_left(pieces: list[Piece], counted: int | None) -> None:
    assert said_once(pieces, counted) == pieces


def test_cumulative_ids_are_those_of_the_last_chunk() -> None:
    pieces = [Piece("a", (1,)), Piece("ab", (1, 2)), Piece("abc", (1, 2, 3))]
    assert list(said_once(pieces, 3)) == [pieces[-1]]
    pieces = [Piece("a", (1,)), Piece("ab", (2,)), Piece("abc", (3,))]
    assert list(said_once(pieces, 3)) == [Piece("abc", (1, 2, 3))]


def test_tokens_of_a_long_cumulative_reply_are_counted_once() -> None:
    reply = Reply(max_new_tokens=100)
    for end in range(1, 101):
        reply.add({"choices": [{"text": "a" * end, "token_ids": [7] * end}]})
    assert reply.num_tokens == 100


def test_equal_pieces_of_an_answer_are_counted_each() -> None:
    reply = Reply(max_new_tokens=8)
    for text in ("ha", " ", "ha", "ha"):
        reply.add({"choices": [{"text": text}]})
    assert reply.num_tokens == 4
    reply.add({"choices": [{"text": "ha haha"}]})  # the whole message
    assert reply.num_tokens == 4


def test_ids_cover_the_text_if_each_text_has_one() -> None:
    assert covers_text([Piece("a", (1,)), Piece("", (2,)), Piece("é", (3,))])
    assert not covers_text([Piece("a", (1,)), Piece("b"), Piece("c", (3,))])
    assert not covers_text([Piece("ab", (1,), ranked("a", "b"))])


def test_text_without_a_token_belongs_to_the_token_before_it() -> None:
    held_back = [Piece("", (1,)), Piece("a", (2,)), Piece("bc")]
    assert token_ends(held_back, by_ids=True) == (0, 3)
    assert token_ends([Piece("think"), Piece("a", (2,))], by_ids=True) is None


def stream(*choices: dict[str, Any], usage: dict[str, Any] | None = None) -> Reply:
    reply = Reply(max_new_tokens=8)
    for choice in choices:
        reply.add({"choices": [choice]})
    if usage is not None:
        reply.add({"choices": [], "usage": usage})
    return reply


def said(content: str, **choice: Any) -> dict[str, Any]:
    return {"delta": {"content": content}, **choice}


def test_whole_message_at_the_end_of_a_stream_counts_once() -> None:
    whole = {"message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}
    for last in (whole, whole | {"delta": {}}, whole | {"token_ids": [1, 2]}):
        tokens = {"token_ids": [1]}, {"token_ids": [2]}
        completion = stream(said("one ", **tokens[0]), said("two", **tokens[1]), last).completion()
        assert (completion.text, completion.token_ids) == ("one two", (1, 2))


def thought(text: str, field: str = "reasoning", **message: Any) -> dict[str, Any]:
    return {"delta": {field: text, **message}}


@pytest.mark.parametrize(
    "choices",
    [
        [thought("so "), thought("on"), thought("so on", "reasoning_content", content="yes")],
        [thought("so "), thought("on"), thought("so on", content="yes")],
        [thought("so on"), thought("so on", "reasoning_content"), said("yes")],
        [thought(one, f) for one in ("so ", "on") for f in ("reasoning", "thinking")]
        + [said("yes")],
        [thought("so "), thought("on"), said("y"), said("es"), said("yes")],
        [thought("so "), thought("on"), said("y"), said("es"), thought("so on", content="yes")],
        [thought("so on"), said("y"), said("ye"), said("yes"), said("yes")],
    ],
)
def test_reasoning_or_answer_that_is_sent_again_counts_once(choices: list[dict[str, Any]]) -> None:
    ending = {"delta": {}, "finish_reason": "stop"}
    assert stream(*choices, ending).completion().text == "so onyes"


@pytest.mark.parametrize(
    "choices",
    [
        [thought("so "), thought("on"), thought("so", "reasoning_content"), said("yes")],
        [thought("yes"), said("yes")],
        [thought("ha"), thought("ha"), said("yes")],
        [thought("so "), said("ha"), said("ha")],
    ],
)
def test_reasoning_that_is_not_all_of_another_field_is_left(choices: list[dict[str, Any]]) -> None:
    texts = [text for one in choices for text in one["delta"].values()]
    assert stream(*choices, {"delta": {}, "finish_reason": "stop"}).text == "".join(texts)


def test_ids_stay_with_the_tokens_of_an_answer_that_is_sent_again() -> None:
    reply = stream(
        thought("so") | {"token_ids": [1]},
        said("a ", token_ids=[2]),
        said("b", token_ids=[3]),
        said("a b", finish_reason="stop"),
        usage={"completion_tokens": 3},
    )
    assert (reply.text, reply.completion().token_ids) == ("soa b", (1, 2, 3))


def test_message_with_the_text_so_far_beside_each_delta_counts_once() -> None:
    completion = stream(
        said("one ", message={"content": "one "}),
        said("two", message={"content": "one two"}, finish_reason="stop"),
    ).completion()
    assert completion.text == "one two"


def test_whole_message_that_says_something_else_is_no_answer() -> None:
    with pytest.raises(Failure) as caught:
        stream(said("one "), said("two"), {"message": {"content": "three"}})
    assert caught.value.kind == MALFORMED


def test_chunks_of_text_without_ids_are_compared_by_text() -> None:
    completions = [
        stream(
            said("a", token_ids=[1]), said(middle), said("c", token_ids=[3], finish_reason="stop")
        )
        for middle in ("b", "B")
    ]
    assert all(reply.misses_token_ids for reply in completions)
    fingerprints = {reply.completion().fingerprint for reply in completions}
    assert len(fingerprints) == 2
    assert all(one.startswith("sha256-text:") for one in fingerprints)
    whole = stream(said("a", token_ids=[1]), said("b", token_ids=[2], finish_reason="stop"))
    assert not whole.misses_token_ids
    assert whole.completion().token_ids == (1, 2)


@pytest.mark.parametrize(
    ("choices", "usage", "unseen"),
    [
        ([said("a b")], {"completion_tokens": 60, "completion_tokens_details": {}}, 56),
        ([said("a b")], {"completion_tokens": 4}, 0),
        (
            [said("a b")],
            {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}},
            7,
        ),
        ([said("a b")], {"completion_tokens": 2, "reasoning_tokens": 50}, 50),  # counted apart
        ([said("a b")], {"output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 7}}, 7),
        ([said("a", token_ids=[1])], {"completion_tokens": 9}, 7),
        ([said("a", token_ids=[1, 2, 3])], {"completion_tokens": 3, "reasoning_tokens": 2}, 0),
        (
            [{"delta": {"reasoning": "so it is"}}, said("a")],
            {"completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 3}},
            0,
        ),
        ([said("a b")], {"completion_tokens": "9"}, 0),
        ([said("a b")], None, 0),
    ],
)
def test_tokens_that_were_counted_and_not_shown(
    choices: list[dict[str, Any]], usage: dict[str, Any] | None, unseen: int
) -> None:
    reply = stream(*choices, {"delta": {}, "finish_reason": "stop"}, usage=usage)
    assert reply.completion().unseen_tokens == unseen
