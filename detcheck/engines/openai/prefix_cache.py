"""Requests that must find an empty or a filled prefix cache, and the proof that they did.

A server is told by fields of the request: vLLM and SGLang keep a cache for each `cache_salt`,
llama.cpp leaves its cache out with `cache_prompt: false`. Other servers ignore both, so only the
server's own numbers prove it: its counter of cached prompt tokens, and the number that a reply may
report in its usage. Of a trial the counter must be known, or of every reply the number. Where a
server has both, both must show the state.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from detcheck.completion import Completion
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.request import Question
from detcheck.evidence import EndpointCheck
from detcheck.targets.prefix_cache import COLD, WARM
from detcheck.text import count
from detcheck.traffic import Trial


@dataclass(slots=True)
class ReportedTokens:
    """Cached prompt tokens as the replies to the probes report them."""

    tokens: int = 0
    replies: int = 0
    without: int = 0
    """Replies that report 0."""
    silent: int = 0
    """Replies that report no number."""

    def add(self, cached_tokens: int | None) -> None:
        """Count one reply."""
        self.replies += 1
        self.tokens += cached_tokens or 0
        self.without += cached_tokens == 0
        self.silent += cached_tokens is None

    @property
    def complete(self) -> bool:
        """True if every reply reported a number."""
        return self.replies > 0 and not self.silent


@dataclass(slots=True)
class CountedTokens:
    """Cached prompt tokens by the server's counter, which are those of all its clients."""

    tokens: int = 0
    trials: int = 0
    uncounted: int = 0
    """Trials in which the counter was not there, or started again at 0."""
    each: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By prompt: (probes that were answered, tokens) of every trial."""

    def add(self, prompt: int, probes: int, cached_tokens: int | None) -> None:
        """Count one trial in which so many `probes` were answered."""
        self.trials += 1
        self.uncounted += cached_tokens is None
        self.tokens += cached_tokens or 0
        if cached_tokens is not None:
            self.each.setdefault(prompt, []).append((probes, cached_tokens))

    @property
    def complete(self) -> bool:
        """True if the tokens of every trial are known."""
        return self.trials > 0 and not self.uncounted

    @property
    def short(self) -> int:
        """Trials with fewer tokens than their probes take if each takes as many as one alone.

        If no probe was alone, one token each must do.
        """
        number = 0
        for trials in self.each.values():
            alone = min((tokens for probes, tokens in trials if probes == 1), default=1)
            number += sum(tokens < probes * max(1, alone) for probes, tokens in trials)
        return number


@dataclass(slots=True)
class ServedPlace:
    """One placement of the grid: an endpoint, and the state of its prefix cache."""

    name: str
    endpoint: Endpoint
    cache: str
    """`as-is`, `cold` or `warm`."""
    reported: ReportedTokens = field(default_factory=ReportedTokens)
    counted: CountedTokens = field(default_factory=CountedTokens)

    def salt(self) -> str | None:
        """A cache of its own for one request, if the cache must be cold."""
        return uuid.uuid4().hex if self.cache == COLD else None

    async def prepare(self, question: Question) -> None:
        """Fill the cache with a prompt, if it must be warm: ask for one token and wait for it."""
        if self.cache != WARM:
            return
        warming = replace(question, max_new_tokens=1, cache_salt=None)
        try:
            await self.endpoint.ask(warming)
        except Failure:
            return  # the trial itself reports a server that fails

    def count(self, trial: Trial, answers: Sequence[Completion]) -> None:
        """Take note of the counter after a trial; a trial without an answer shows nothing."""
        probes = sum(
            request.is_probe and not answer.failed
            for request, answer in zip(trial.requests, answers, strict=True)
        )
        if probes:
            tokens = self.endpoint.watch.cached_tokens
            self.counted.add(trial.condition.prompt_index, probes, tokens)

    def checks(self) -> list[EndpointCheck]:
        """Whether the cache was cold or warm in the trials up to now; decisive."""
        if self.cache not in (COLD, WARM) or not self.counted.trials:
            return []
        fault = self._not_shown() or (self._not_cold() if self.cache == COLD else self._not_warm())
        tokens = self.reported.tokens if self.reported.complete else self.counted.tokens
        shown = f"{tokens:,} prompt tokens came from the prefix cache"
        return [
            EndpointCheck(f"{self.cache} prefix cache", not fault, fault or shown, decisive=True)
        ]

    def _not_shown(self) -> str:
        """Why nothing shows the state of the cache; empty if something does."""
        counted = self.counted
        if counted.complete or self.reported.complete:
            return ""
        if counted.uncounted == counted.trials:
            return "the server does not count cached prompt tokens: nothing shows its state"
        return (
            f"in {counted.uncounted} of {count(counted.trials, 'trial')} the server's counter of "
            "cached prompt tokens was missing or started again at 0: nothing shows its state there"
        )

    def _not_cold(self) -> str:
        """Why the cache was not cold; empty if it was."""
        if self.reported.tokens:
            return (
                f"replies report {self.reported.tokens:,} prompt tokens from the prefix cache, "
                "although each request named a cache of its own"
            )
        if not self.counted.tokens:
            return ""
        others = ", and its replies report none: other clients may have taken them"
        return (
            f"{self.counted.tokens:,} prompt tokens came from the prefix cache, although each "
            f"request named a cache of its own{others if self.reported.complete else ''}"
        )

    def _not_warm(self) -> str:
        """Why some request may have found no warm cache; empty if all found one."""
        reported, counted = self.reported, self.counted
        if not (reported.tokens or counted.tokens):
            return (
                "0 prompt tokens came from the prefix cache: prompts shorter than one of its "
                "blocks are not kept"
            )
        if reported.complete and reported.without:
            return (
                f"{reported.without} of {count(reported.replies, 'reply')} report no "
                "prompt token from the prefix cache: these requests computed their whole prompt"
            )
        if counted.complete and counted.short:
            return (
                f"{counted.tokens:,} prompt tokens came from the prefix cache, and in "
                f"{counted.short} of {count(counted.trials, 'trial')} too few for all requests: "
                "some computed their whole prompt"
            )
        return ""
