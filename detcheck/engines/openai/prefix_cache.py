"""Requests that must find an empty or a filled prefix cache, and the proof that they did.

A server is told by fields of the request: vLLM and SGLang keep a cache for each `cache_salt`,
llama.cpp leaves its cache out with `cache_prompt: false`. Other servers ignore both, so only the
server's own counter of cached prompt tokens proves it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.request import Question
from detcheck.evidence import EndpointCheck, LoadEvidence
from detcheck.targets.prefix_cache import COLD, WARM


@dataclass(slots=True)
class ServedPlace:
    """One placement of the grid: an endpoint, and the state of its prefix cache."""

    name: str
    endpoint: Endpoint
    cache: str
    """`as-is`, `cold` or `warm`."""
    cached_tokens: int | None = None
    """Prompt tokens from the prefix cache in all trials; None if the server counts none."""
    trials: int = 0

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

    def count(self, load: LoadEvidence | None) -> None:
        """Take note of the counters of a trial."""
        self.trials += 1
        if load is not None and load.prefix_cache_hits is not None:
            self.cached_tokens = (self.cached_tokens or 0) + load.prefix_cache_hits

    def checks(self) -> list[EndpointCheck]:
        """Whether the cache was cold or warm in the trials up to now; decisive."""
        if self.cache not in (COLD, WARM) or not self.trials:
            return []
        name, cached = f"{self.cache} prefix cache", self.cached_tokens
        if cached is None:
            sentence = "the server does not count cached prompt tokens: nothing shows its state"
            return [EndpointCheck(name, False, sentence, decisive=True)]
        holds = cached == 0 if self.cache == COLD else cached > 0
        sentence = f"{cached:,} prompt tokens came from the prefix cache"
        if not holds and self.cache == COLD:
            sentence += ", although each request named a cache of its own"
        elif not holds:
            sentence += ": prompts shorter than one of its blocks are not kept"
        return [EndpointCheck(name, holds, sentence, decisive=True)]
