"""Replies over a whole run: ids that come again are a cache only if another sign agrees."""

from __future__ import annotations

import pytest

from detcheck.engines.openai import tally as tallies
from detcheck.engines.openai.checks import over_the_run
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.tally import ReplyTally


class Clock:
    """A monotonic clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tallies, "monotonic", made)
    return made


def reply(reply_id: str, text: str = "x", created: int | None = None, num_tokens: int = 1) -> Reply:
    made = Reply(64)
    for _ in range(num_tokens):
        made.add({"id": reply_id, "created": created, "choices": [{"delta": {"content": text}}]})
    made.done = True
    return made


def checks(tally: ReplyTally) -> dict[str, tuple[bool | None, bool]]:
    return {check.name: (check.holds, check.decisive) for check in over_the_run(tally)}


def test_equal_ids_with_different_texts_are_no_identity() -> None:
    tally = ReplyTally()
    for number, text in enumerate(("yes", "yes", "no")):
        assert "token ids" not in checks(tally)
        made = Reply(8)
        choice = {"delta": {"content": text}, "token_ids": [5], "finish_reason": "stop"}
        made.add({"id": f"id-{number}", "choices": [choice]})
        tally.add(made, 1.0)
    assert tally.with_other_text == 1
    assert checks(tally)["token ids"] == (False, True)


def test_ids_from_a_small_pool_are_no_cache() -> None:
    tally = ReplyTally()
    for number in range(100):
        tally.add(reply(f"id-{number % 60}"), 1.0)
    assert (tally.repeated_ids, tally.cached) == (40, 0)
    assert checks(tally)["ids of replies"] == (False, False)


def test_repeated_id_in_no_time_is_a_cache() -> None:
    tally = ReplyTally()
    for number in range(10):
        tally.add(reply(f"id-{number}"), 1.0)
    tally.add(reply("id-3"), 0.001)
    assert tally.cached == 1
    assert checks(tally)["ids of replies"] == (False, True)


def test_short_answer_with_a_repeated_id_is_judged_by_its_time_a_token() -> None:
    tally = ReplyTally()
    for number in range(10):
        tally.add(reply(f"id-{number}", num_tokens=50), 10.0)
    tally.add(reply("id-3", num_tokens=1), 0.2)
    assert (tally.repeated_ids, tally.cached) == (1, 0)


def test_other_answer_under_a_repeated_id_is_no_cache() -> None:
    tally = ReplyTally()
    tally.add(reply("id-1", "x"), 1.0)
    tally.add(reply("id-1", "y"), 0.001)
    assert (tally.repeated_ids, tally.cached) == (1, 0)


@pytest.mark.parametrize(
    ("later_created", "seconds", "cached"), [(107, 7, 1), (100, 7, 0), (107, 1, 0)]
)
def test_repeated_id_with_a_time_stamp_that_has_passed_is_a_cache(
    clock: Clock, later_created: int, seconds: int, cached: int
) -> None:
    tally = ReplyTally()
    tally.add(reply("id-1", created=100), 1.0)
    clock.now += seconds
    tally.add(reply("id-2", created=later_created), 1.0)
    tally.add(reply("id-1", created=100), 1.0)
    assert tally.cached == cached


def test_one_id_for_all_replies_says_nothing() -> None:
    tally = ReplyTally()
    for _ in range(10):
        tally.add(reply("id"), 1.0)
    assert "ids of replies" not in checks(tally)


def test_memory_of_replies_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(tallies, "MOST_REMEMBERED", 10)
    tally = ReplyTally()
    for number in range(1000):
        tally.add(reply(f"id-{number}"), 1.0)
    assert len(tally._by_id) <= 10
    assert tally.repeated_ids == 0


def test_unseen_tokens_and_unknown_fields_are_reported() -> None:
    tally = ReplyTally()
    assert set(checks(tally)) == {"system_fingerprint"}
    hidden = reply("a")
    hidden.add({"choices": [], "usage": {"completion_tokens": 9, "reasoning_tokens": 7}})
    partial = reply("b")
    partial.add({"choices": [{"delta": {"content": "y", "pondering": "z"}, "token_ids": [1]}]})
    for one in (hidden, partial):
        tally.add(one, 1.0)
    assert set(checks(tally)) == {
        *("system_fingerprint", "token ids", "whole answers", "unknown fields")
    }
    said = " ".join(check.sentence for check in over_the_run(tally))
    assert "7 tokens in 1 of 2 replies were counted and never shown" in said
    assert "in 1 of 2 replies they are not those of the whole answer" in said
    assert "pondering" in said
