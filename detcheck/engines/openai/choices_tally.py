"""Requests for several choices above temperature 0: cloned choices, and numbers that change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from detcheck.completion import Completion
from detcheck.engines.openai.request import Question
from detcheck.evidence import EndpointCheck
from detcheck.text import count

CHOICES = "choices"
CHOICE_NUMBERS = "numbers of choices"
MOST_QUESTIONS = 4096


@dataclass(slots=True)
class ChoicesTally:
    """Counts over the replies with several choices, in bounded memory."""

    requests: int = 0
    cloned: int = 0
    """Requests all of whose choices are equal."""
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
        self.cloned += distinct == 1
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
        if self.cloned == self.requests:
            sentence = (
                f"all choices are equal in each of {asked}: the server clones one sample, or the "
                "model is sure of its words"
            )
            yield EndpointCheck(CHOICES, False, sentence)
        elif self.cloned:
            sentence = f"all choices are equal in {self.cloned} of {asked}"
            yield EndpointCheck(CHOICES, False, sentence)
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
