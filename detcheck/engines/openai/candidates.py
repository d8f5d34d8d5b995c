"""Log-probabilities as servers send them: the chosen token, the runner-up and the gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Ranked:
    """One generated token and its closest competitor."""

    token: str
    token_id: int | None
    logprob: float
    """Log-probability of the token itself, in nats; NaN if the server did not send it."""
    gap: float
    """Best minus second best, in nats; NaN if the server sent fewer than two."""
    runner_up: str
    """Text of the best token that was not chosen; empty if the server sent none."""
    runner_up_id: int | None

    @classmethod
    def unknown(cls) -> Ranked:
        """A token without log-probabilities."""
        return cls("", None, NAN, NAN, "", None)


class Candidate(NamedTuple):
    """One token that could have come next."""

    logprob: float
    """In nats; NaN if the server did not send a usable number."""
    text: str
    token_id: int | None = None
    data: list[Any] | None = None
    """Its bytes: two tokens that hold parts of a character are both shown as U+FFFD or ""."""

    def same_token(self, other: Candidate) -> bool:
        """True if both are one token: by id, else by bytes, else by text."""
        if self.token_id is not None and other.token_id is not None:
            return self.token_id == other.token_id
        if self.data is not None and other.data is not None:
            return self.data == other.data
        return self.text == other.text


def chat_token(entry: Any) -> Ranked:
    """The token in one element of `logprobs.content`, with its `top_logprobs`."""
    if not isinstance(entry, dict):
        return Ranked.unknown()
    others = entry.get("top_logprobs")
    chosen = _candidate(entry)
    return _rank(chosen, [_candidate(one) for one in others] if isinstance(others, list) else [])


def legacy_tokens(logprobs: dict[str, Any]) -> list[Ranked]:
    """The tokens of a `logprobs` object of /completions: parallel lists."""
    tokens, scores = logprobs.get("tokens"), logprobs.get("token_logprobs")
    tops = logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(scores, list):
        return []
    tops = tops if isinstance(tops, list) else []
    ranked = []
    for index, token in enumerate(tokens):
        top = tops[index] if index < len(tops) and isinstance(tops[index], dict) else {}
        score = _number(scores[index] if index < len(scores) else None)
        chosen = Candidate(score, token if isinstance(token, str) else "")
        others = [Candidate(_number(value), text) for text, value in top.items()]
        # An object has one entry a text: under the chosen text stands another token if the
        # log-probability is another one.
        others = [one for one in others if one.text != chosen.text or not _equal(one, chosen)]
        ranked.append(_ranked(chosen, others))
    return ranked


def _rank(chosen: Candidate, candidates: Sequence[Candidate]) -> Ranked:
    """`candidates` hold the chosen token at most once; any other with its text is another one."""
    same = [index for index, one in enumerate(candidates) if chosen.same_token(one)]
    own = min(same, key=lambda index: _distance(candidates[index], chosen), default=None)
    return _ranked(chosen, [one for index, one in enumerate(candidates) if index != own])


def _distance(one: Candidate, chosen: Candidate) -> float:
    distance = abs(one.logprob - chosen.logprob)
    return math.inf if math.isnan(distance) else distance


def _equal(one: Candidate, chosen: Candidate) -> bool:
    """True if both log-probabilities are one number, however it was rounded when written."""
    return math.isclose(one.logprob, chosen.logprob, rel_tol=1e-5, abs_tol=1e-6)


def _ranked(chosen: Candidate, others: Sequence[Candidate]) -> Ranked:
    """`others` are without the chosen token. At a tie the chosen token is the best."""
    rest = [one for one in others if not math.isnan(one.logprob)]
    if math.isnan(chosen.logprob) or not rest:
        return Ranked(chosen.text, chosen.token_id, chosen.logprob, NAN, "", None)
    rest.sort(key=lambda one: -one.logprob)
    runner_up = rest[0]
    best, second = chosen.logprob, runner_up.logprob
    if best < second:
        best, second = second, best
        # A token sampled from below the second best: the gap is between the two best all the same.
        if len(rest) > 1:
            second = max(second, rest[1].logprob)
    return Ranked(
        chosen.text,
        chosen.token_id,
        chosen.logprob,
        best - second,
        runner_up.text,
        runner_up.token_id,
    )


def _candidate(entry: Any) -> Candidate:
    if not isinstance(entry, dict):
        return Candidate(NAN, "")
    token, token_id, data = entry.get("token"), entry.get("id"), entry.get("bytes")
    return Candidate(
        _number(entry.get("logprob")),
        token if isinstance(token, str) else "",
        token_id if type(token_id) is int and 0 <= token_id < 2**31 else None,
        data if isinstance(data, list) and data else None,  # a special token has an empty list
    )


def _number(value: Any) -> float:
    """A finite number; NaN for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and abs(value) < 1e300 else NAN
