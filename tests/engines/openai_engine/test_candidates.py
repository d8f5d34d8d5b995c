"""The runner-up and its gap, from the two forms in which servers send log-probabilities."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from detcheck.engines.openai.candidates import chat_token, legacy_tokens


def entry(token: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    tops = [{"token": text, "logprob": value} for text, value in ((token, logprob), *others)]
    return {"token": token, "logprob": logprob, "top_logprobs": tops}


@pytest.mark.parametrize(
    ("token", "others", "runner_up", "gap"),
    [
        (("A", -1.0), [("B", -1.5), ("C", -2.0)], "B", 0.5),
        (("A", -1.0), [("B", -1.0)], "B", 0.0),
        (("B", -1.5), [("A", -1.0)], "A", 0.5),
        (("C", -3.0), [("A", -1.0), ("B", -1.5)], "A", 0.5),
    ],
)
def test_runner_up_is_the_best_token_that_was_not_chosen(
    token: tuple[str, float], others: list[tuple[str, float]], runner_up: str, gap: float
) -> None:
    ranked = chat_token(entry(*token, *others))
    assert (ranked.runner_up, ranked.gap) == (runner_up, gap)
    legacy = {
        "tokens": [token[0]],
        "token_logprobs": [token[1]],
        "top_logprobs": [dict([token, *others])],
    }
    assert legacy_tokens(legacy)[0] == ranked


@pytest.mark.parametrize(
    "broken", [None, 7, {"token": 5, "logprob": "x", "top_logprobs": [None, {"logprob": True}]}]
)
def test_unusable_candidates_give_no_gap(broken: Any) -> None:
    assert math.isnan(chat_token(json.loads(json.dumps(broken))).gap)


@pytest.mark.parametrize("text", ["\ufffd", ""])
@pytest.mark.parametrize("key", ["bytes", "id", None])
def test_runner_up_with_the_text_of_the_chosen_token_is_kept(text: str, key: str | None) -> None:
    told = entry(text, -0.5, (text, -0.75), ("x", -3.0))
    if key is not None:
        values: list[Any] = [[0xE6], [0xE7], [0x78]] if key == "bytes" else [226, 230, 87]
        for one, value in zip(told["top_logprobs"], values, strict=True):
            one[key] = value
        told[key] = values[0]
    ranked = chat_token(told)
    assert (ranked.runner_up, ranked.gap) == (text, 0.25)


def test_runner_up_is_kept_if_it_comes_first_in_the_list() -> None:
    told = entry("\ufffd", -0.75)
    told["top_logprobs"] = [{"token": "\ufffd", "logprob": value} for value in (-0.5, -0.75)]
    assert chat_token(told).gap == 0.25


def test_chosen_token_outside_the_list_costs_no_entry() -> None:
    told = entry("z", -4.0)
    told["top_logprobs"] = [{"token": text, "logprob": -1.0 - n} for n, text in enumerate("ab")]
    ranked = chat_token(told)
    assert (ranked.runner_up, ranked.logprob, ranked.gap) == ("a", -4.0, 1.0)


def test_equal_bytes_are_one_token_whatever_its_text() -> None:
    told = entry(" a", -0.5, ("b", -0.75))
    told |= {"bytes": [32, 97]}
    told["top_logprobs"][0] |= {"token": "\u0120a", "bytes": [32, 97]}
    told["top_logprobs"][1] |= {"bytes": [98]}
    assert chat_token(told).runner_up == "b"


def test_legacy_object_holds_the_other_token_under_the_chosen_text() -> None:
    """Two tokens with one text share a key; the value that is not the chosen one's is kept."""
    legacy = {"tokens": ["\ufffd"], "token_logprobs": [-0.5], "top_logprobs": [{"\ufffd": -0.75}]}
    (ranked,) = legacy_tokens(legacy)
    assert (ranked.runner_up, ranked.gap) == ("\ufffd", 0.25)
    for own in (-0.5, -0.5000001):  # the chosen token's own entry, rounded otherwise
        legacy["top_logprobs"] = [{"\ufffd": own}]
        assert math.isnan(legacy_tokens(legacy)[0].gap)
