"""A small engine: each step gives every running request one token, and is counted."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from .faults import Faults
from .script import END, Ranked, Script, prompt_token_ids

BLOCK = 16
"""Prompt tokens of a block of the prefix cache."""
BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(slots=True)
class Counters:
    """The true numbers that /metrics is made of."""

    running: int = 0
    waiting: int = 0
    steps_by_tokens: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    """Steps whose tokens (prefill and decode) fall into each bucket of the histogram."""
    step_tokens: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    prefix_queries: int = 0
    generated_tokens: int = 0
    largest_batch: int = 0
    """Most requests of one step; vLLM has no such metric."""
    flipped: int = 0
    """Requests that took the planted token."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; `finish_reason` with the last one."""

    token_id: int
    ranked: Ranked
    finish_reason: str | None
    batch: int = 1
    """Requests of the step that generated it."""


class Generation:
    """One request in the engine; its tokens come out of `tokens`, one a step."""

    def __init__(
        self,
        prompt: str,
        *,
        number: int,
        max_tokens: int,
        temperature: float,
        seed: int | None,
        faults: Faults,
        replica: int = 0,
        cache_salt: str = "",
    ):
        self.tokens: asyncio.Queue[Token] = asyncio.Queue()
        self.prompt_token_ids = prompt_token_ids(prompt)
        self.cached_prefix = False
        self.cached_tokens = 0
        self.looks_into_cache = (
            random.Random(f"cached/{faults.flip_seed}/{number}").random() < faults.cached_share
        )
        self.cache_key = f"{'' if faults.ignores_cache_salt else cache_salt}/{prompt}"
        self.flipped = False
        self.num_tokens = 0
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._faults = faults
        asked = "anything" if faults.one_answer else prompt
        self._script = Script(
            f"{asked}/replica {replica}" if replica else asked, faults.answer_tokens
        )
        self._flips = random.Random(f"flip/{faults.flip_seed}/{number}").random() < faults.flip_rate
        unseeded = seed is None or faults.ignores_seed
        self._seed = f"unseeded/{number}" if unseeded else f"seed/{seed}/{prompt}"
        self._rng = random.Random(self._seed)

    @property
    def prompt(self) -> str:
        return self._prompt

    def take_seed_of(self, other: Generation) -> None:
        """Sample with the seed of another request."""
        self._seed = other._seed
        self._rng = random.Random(self._seed)

    def step(self, batch: int) -> Token:
        """The next token, computed among `batch` requests."""
        ranked = self._ranked(batch)
        token_id = ranked.token_ids[0]
        if self._temperature > 0:
            token_id = ranked.sample(self._temperature, self._rng)
        self._script.take(token_id)
        self.num_tokens += 1
        token = Token(token_id, ranked, self._finish_reason(token_id), batch)
        self.tokens.put_nowait(token)
        return token

    def _ranked(self, batch: int) -> Ranked:
        faults, ranked = self._faults, self._scored(batch)
        return ranked.rounded(faults.logprob_decimals, faults.logprob_bits)

    def _scored(self, batch: int) -> Ranked:
        faults, ranked = self._faults, self._script.ranked()
        if faults.noise and batch > 1:
            ranked = ranked.moved(
                faults.noise * random.Random(f"{batch}/{self.num_tokens}").random()
            )
        if self.num_tokens != faults.flip_at:
            return ranked
        ranked = ranked.with_gap(faults.flip_gap)
        hit = self.cached_prefix if faults.flip_on_cached_prefix else batch > faults.flip_above
        self.flipped = hit and self._flips
        return ranked.swapped() if self.flipped else ranked

    def _finish_reason(self, token_id: int) -> str | None:
        if self._faults.flood == "tokens":
            return None
        if token_id == END:
            return "stop"
        return "length" if self.num_tokens >= self._max_tokens else None


class StepEngine:
    """Continuous batching: requests join between steps, up to `max_num_seqs` of them."""

    def __init__(self, faults: Faults):
        self.faults = faults
        self.counters = Counters()
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._arrived = asyncio.Event()
        self._seen_blocks: set[str] = set()
        self._num_steps = 0

    def submit(self, generation: Generation) -> None:
        """Queue a request."""
        self._waiting.append(generation)
        self._arrived.set()

    def abort(self, generation: Generation) -> None:
        """Forget a request whose client has gone."""
        for queue in (self._waiting, self._running):
            if generation in queue:
                queue.remove(generation)

    async def run(self) -> None:
        """Step for ever; cancel it to stop."""
        while True:
            if not self._running:
                await self._wait_for_arrivals()
            self._admit()
            self._step()
            self._count_queues()
            await asyncio.sleep(self.faults.step_s)

    async def _wait_for_arrivals(self) -> None:
        if not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        while True:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), self.faults.quiet_s)
            except TimeoutError:
                return

    def _admit(self) -> None:
        first = self._waiting[0] if self._waiting else None
        while self._waiting and len(self._running) < self.faults.max_num_seqs:
            generation = self._waiting.popleft()
            if self.faults.one_seed_a_batch and first is not None:
                generation.take_seed_of(first)
            self._running.append(generation)

    def _step(self) -> None:
        batch = len(self._running) + self.faults.others
        step_tokens = batch
        for generation in self._running:
            if generation.num_tokens == 0:
                step_tokens += self._prefill(generation)
        finished = [g for g in self._running if g.step(batch).finish_reason is not None]
        self._count_step(batch, step_tokens, len(self._running))
        if finished:
            self.counters.flipped += sum(generation.flipped for generation in finished)
            done = set(finished)
            self._running = [g for g in self._running if g not in done]
        self._preempt()

    def _prefill(self, generation: Generation) -> int:
        """Prompt tokens that are computed; whole blocks seen before come from the cache."""
        num_tokens = len(generation.prompt_token_ids)
        cached = 0
        if generation.looks_into_cache and generation.cache_key in self._seen_blocks:
            cached = (num_tokens - 1) // BLOCK * BLOCK
            generation.cached_prefix = True
        generation.cached_tokens = cached
        self._seen_blocks.add(generation.cache_key)
        self.counters.prefix_queries += num_tokens
        self.counters.prefix_hits += cached
        return num_tokens - cached

    def _count_step(self, batch: int, step_tokens: int, generated: int) -> None:
        counters = self.counters
        counters.steps_by_tokens[bisect_left(BUCKETS, step_tokens)] += 1
        counters.step_tokens += step_tokens
        counters.prefix_hits += self.faults.others_cached
        counters.generated_tokens += generated + self.faults.others
        counters.largest_batch = max(counters.largest_batch, batch)

    def _count_queues(self) -> None:
        self.counters.running = len(self._running) + self.faults.others
        self.counters.waiting = len(self._waiting)

    def _preempt(self) -> None:
        """Put the newest running request back, as an engine without free memory does."""
        self._num_steps += 1
        every = self.faults.preempt_every
        if every and self._num_steps % every == 0 and len(self._running) > 1:
            self._waiting.appendleft(self._running.pop())
            self.counters.preemptions += 1
