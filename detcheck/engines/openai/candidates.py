"""Log-probabilities as servers send them: the chosen token, the runner-up and the gap."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Ranked:
    """One generated token and its closest competitor."""

    token: str
    token_id: int | None
    logprob: float
    """Log-probability of the best token; NaN where it was not told."""
    gap: float
    """Best minus second best, in nats; NaN where fewer than two were told."""
    runner_up: str
    """Text of the best token that was not chosen; empty where none was told."""
    runner_up_id: int | None

    @classmethod
    def unknown(cls) -> Ranked:
        """A token of which the server told nothing."""
        return cls("", None, NAN, NAN, "", None)


Candidate = tuple[float, str, int | None]
"""(log-probability, text, id)."""


def chat_token(entry: Any) -> Ranked:
    """One element of `logprobs.content`, with its `top_logprobs`."""
    if not isinstance(entry, dict):
        return Ranked.unknown()
    others = entry.get("top_logprobs")
    chosen = _candidate(entry)
    return _rank(chosen, map(_candidate, others if isinstance(others, list) else ()))


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
        score = scores[index] if index < len(scores) else None
        chosen = (_number(score), token if isinstance(token, str) else "", None)
        ranked.append(_rank(chosen, ((_number(value), text, None) for text, value in top.items())))
    return ranked


def _rank(chosen: Candidate, others: Iterable[Candidate]) -> Ranked:
    """At a tie the chosen token is the best: a runner-up is never the chosen one."""
    chosen_logprob, token, token_id = chosen
    rest = [
        one
        for one in others
        if not math.isnan(one[0])
        and (one[2] != token_id if None not in (one[2], token_id) else one[1] != token)
    ]
    if math.isnan(chosen_logprob) or not rest:
        return Ranked(token, token_id, chosen_logprob, NAN, "", None)
    rest.sort(key=lambda one: -one[0])
    runner_up_logprob, runner_up, runner_up_id = rest[0]
    best = max(chosen_logprob, runner_up_logprob)
    # Sampled beyond the second best: the gap is between the two best, whoever was chosen.
    others_best = min(chosen_logprob, runner_up_logprob)
    if len(rest) > 1 and chosen_logprob < rest[1][0]:
        others_best = rest[1][0]
    return Ranked(token, token_id, best, best - others_best, runner_up, runner_up_id)


def _candidate(entry: Any) -> Candidate:
    if not isinstance(entry, dict):
        return NAN, "", None
    token, token_id = entry.get("token"), entry.get("id")
    return (
        _number(entry.get("logprob")),
        token if isinstance(token, str) else "",
        token_id if type(token_id) is int and 0 <= token_id < 2**31 else None,
    )


def _number(value: Any) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and abs(value) < 1e300 else NAN
