"""Requests for several choices above temperature 0: cloned choices, and numbers that change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from detcheck.completion import Completion
from detcheck.engines.openai.request import Question
from detcheck.evidence import EndpointCheck
from detcheck.text import count

CHOICES = "choices"
CHOICE_NUMBERS = "numbers of choices"
MOST_QUESTIONS = 4096
LIKELY = 0.5
"""An answer at least so probable may well come for every choice."""


@dataclass(slots=True)
class ChoicesTally:
    """Counts over the replies with several choices, in bounded memory."""

    requests: int = 0
    cloned: int = 0
    """Requests all of whose choices are equal."""
    likely: int = 0
    """Those of them whose answer is at least `LIKELY` by the server's log-probabilities."""
    empty: int = 0
    """Those of them whose answer is empty: the model ended it at once."""
    repeated: int = 0
    """Requests some of whose choices are equal, but not all."""
    reordered: int = 0
    """Requests with the choices of the first equal request, under other numbers."""
    _first: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    """By (prompt, seed): the fingerprints of the choices of the first such request."""

    def add(self, question: Question, completions: Sequence[Completion]) -> None:
        """Count the choices of one request, in the order of their index."""
        if len(completions) < 2:
            return
        prints = tuple(completion.fingerprint for completion in completions)
        self.requests += 1
        distinct = len(set(prints))
        if distinct == 1:
            self.cloned += 1
            self.likely += (probability_of(completions[0]) or 0.0) >= LIKELY
            self.empty += not completions[0].text
        self.repeated += 1 < distinct < len(prints)
        if len(self._first) < MOST_QUESTIONS:
            self._first.setdefault((question.prompt, question.seed), prints)
        first = self._first.get((question.prompt, question.seed), prints)
        self.reordered += prints != first and sorted(prints) == sorted(first)

    def checks(self) -> Iterator[EndpointCheck]:
        """The checks of several choices by their replies; none if no request asked for several."""
        if not self.requests:
            return
        asked = count(self.requests, "request")
        if self.cloned:
            yield self._cloned(asked)
        elif self.repeated:
            sentence = (
                f"some choices are equal in {self.repeated} of {asked}: they share a sample, or "
                "the model is sure of its words"
            )
            yield EndpointCheck(CHOICES, None, sentence)
        else:
            yield EndpointCheck(CHOICES, True, f"{asked} got choices that differ")
        if self.reordered:
            sentence = (
                f"{self.reordered} of {asked} got the choices of an equal request under other "
                "numbers: the server does not number them by their seed"
            )
            yield EndpointCheck(CHOICE_NUMBERS, False, sentence, decisive=True)

    def _cloned(self, asked: str) -> EndpointCheck:
        """The check if all choices of some request are equal; no fault if that was to be expected.

        A model without a chat template may end its answer at once, with near certainty.
        """
        often = f"each of {asked}" if self.cloned == self.requests else f"{self.cloned} of {asked}"
        sentence = f"all choices are equal in {often}"
        if self.empty == self.cloned:
            sentence += ", and empty"
        if self.likely < self.cloned:
            sentence += ": the server clones one sample, or the model is sure of its words"
            return EndpointCheck(CHOICES, False, sentence)
        sentence += (
            f": no proof of a fault, since their log-probabilities say that the model is sure of "
            f"them ({LIKELY:.0%} or more); another prompt, or a higher temperature, tells more"
        )
        return EndpointCheck(CHOICES, None, sentence)


def probability_of(completion: Completion) -> float | None:
    """The probability of a whole answer by its log-probabilities; None if there are none."""
    if completion.top_two is None or not completion.top_two.logprobs:
        return None
    return math.exp(sum(completion.top_two.logprobs))
