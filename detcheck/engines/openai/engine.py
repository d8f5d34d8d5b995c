"""Engine `openai`: the requests of a trial, released together and followed to their end.

A trial has exactly its batch size in flight: connections are opened beforehand, every request
waits at one barrier, and all are sent when it falls. A server decides by itself when it takes a
request in, so the arrival steps of a staggered trial become small delays (`STEP_S` a step), and
no trial repeats another exactly. With arrivals `poisson:RATE` requests are sent at random times
instead, however many are still unanswered.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from msgspec.structs import replace

from detcheck.completion import Completion
from detcheck.engines.base import OnTokens, OnWait, TrialResult
from detcheck.engines.openai import asked_again, same_server, sanity
from detcheck.engines.openai.checks import over_the_run
from detcheck.engines.openai.connection import Connection
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.evidence import Stream, Ticks, agreed
from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.engines.openai.in_flight import TrialProgress, keep_reporting
from detcheck.engines.openai.loop import LoopThread
from detcheck.engines.openai.open_files import SPARE_FILES, allow_open_files
from detcheck.engines.openai.prefix_cache import ServedPlace
from detcheck.engines.openai.request import DECODING, Question
from detcheck.errors import MeasurementError
from detcheck.evidence import EndpointCheck, KernelsProof, ModelIdentity
from detcheck.experiment import Experiment
from detcheck.targets import Served
from detcheck.targets.endpoints import poisson_rate
from detcheck.targets.prefix_cache import COLD
from detcheck.traffic import PlannedRequest, Trial

STEP_S = 0.01
"""Delay that stands for one forward pass in the plan of a staggered trial."""
WARM_S = 1.0
"""Connections that were used within this time are taken to be still open."""
SILENT_TRIALS = 3
"""A condition ends after so many trials in a row without one answer."""


class OpenAIEngine:
    """Asks OpenAI-compatible servers; see `Engine`. Its event loop runs in a thread of its own."""

    def __init__(
        self,
        experiment: Experiment,
        target: Served,
        connection: Connection | None = None,
        on_wait: OnWait | None = None,
    ):
        self._experiment = experiment
        self._target = target
        self._silent: Counter[str] = Counter()
        self._last: tuple[Trial, TrialResult] | None = None
        """The last trial, until the checks' prompts were asked after it."""
        self._warm: dict[str, tuple[int, float]] = {}
        self._ticks = Ticks()
        allow_open_files(max(experiment.batch_sizes) + SPARE_FILES)
        self._loop = LoopThread()
        self._endpoints: dict[str, Endpoint] = {}
        """By base URL."""
        self._places: dict[str, ServedPlace] = {}
        """By placement."""
        try:
            self._loop.run(self._open(connection or Connection(), on_wait or _ignore))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        experiment: Experiment,
        target: Served,
        connection: Connection | None = None,
        on_wait: OnWait | None = None,
    ) -> OpenAIEngine:
        """Connect to the endpoints of `target` and check them."""
        return cls(experiment, target, connection, on_wait)

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """See `Engine.run_trial`."""
        condition = trial.condition
        self.ask_again()  # the trial before is kept by now, whatever comes of this
        result = self._loop.run(self._trial(trial, on_tokens))
        self._last = trial, result
        answered = any(not completion.failed for _, completion in result.completions)
        self._silent[condition.condition_id] = (
            0 if answered else self._silent[condition.condition_id] + 1
        )
        if self._silent[condition.condition_id] > SILENT_TRIALS:
            last = result.completions[-1][1]
            raise MeasurementError(
                f"No answer came back in {SILENT_TRIALS} trials in a row ({last.failure}: "
                f"{last.error}); the completions before are kept."
            )
        return result

    def ask_again(self, *, at_the_end: bool = False) -> None:
        """Ask the checks' prompts again after the last trial, if that is due.

        At the end of the experiment they are asked in any case.
        """
        if self._last is not None:
            last, self._last = self._last, None
            self._loop.run(self._ask_again(*last, at_the_end=at_the_end))

    async def _ask_again(self, trial: Trial, result: TrialResult, *, at_the_end: bool) -> None:
        endpoint = self._places[trial.condition.placement].endpoint
        together = len(trial.requests)
        if at_the_end or endpoint.later.due(together, asyncio.get_running_loop().time()):
            own = {completion.text for _, completion in result.completions if not completion.failed}
            if self._experiment.prompts[trial.condition.prompt_index] in endpoint.later.before:
                own = set()  # the checks ask the same
            await asked_again.ask(endpoint, together, self._experiment.temperature, own)

    def proof(self, kernels: str) -> KernelsProof:
        """Empty: a server's kernels are not known, and none are claimed."""
        return KernelsProof(kernels, {})

    def model_identity(self) -> ModelIdentity:
        """The served names, a constant fingerprint, and decoding options that are not sent."""
        endpoints = self._endpoints.values()
        names = sorted({endpoint.dialect.model for endpoint in endpoints})
        refused = {name for endpoint in endpoints for name in endpoint.dialect.dropped}
        prints = {each for endpoint in endpoints for each in endpoint.tally.system_fingerprints}
        constant = len(prints) == 1 and not any(e.tally.without_fingerprint for e in endpoints)
        return ModelIdentity(
            name=" and ".join(names),
            revision=prints.pop() if constant else None,
            decoding=dict.fromkeys(sorted(refused & {*DECODING}), "not sent"),
        )

    def endpoint_checks(self) -> tuple[EndpointCheck, ...]:
        """See `ChecksEndpoints`."""
        of_endpoints = (
            replace(check, placement=endpoint.placement)
            for endpoint in self._endpoints.values()
            for check in (*endpoint.later.joined(endpoint.checks), *over_the_run(endpoint.tally))
        )
        of_places = (
            replace(check, placement=place.name)
            for place in self._places.values()
            for check in place.checks()
        )
        return (*of_endpoints, *of_places)

    def close(self) -> None:
        """Close every connection."""
        try:
            self._loop.run(self._close())
        finally:
            self._loop.close()

    async def _open(self, connection: Connection, on_wait: OnWait) -> None:
        target = self._target
        several = len(target.endpoints) > 1
        for number, url in enumerate(target.endpoints, start=1):
            placement = f"endpoint {number}" if several else ""
            endpoint = self._endpoints[url] = Endpoint(url, connection, placement, on_wait)
            await sanity.check(endpoint, self._experiment, target)
            if COLD in target.prefix_cache:
                await sanity.learn_cold_cache(endpoint, self._experiment)
        if len(self._endpoints) > 1:
            endpoints = tuple(self._endpoints.values())
            await same_server.check(endpoints, self._experiment.temperature)
        for name, url, cache in target.places:
            self._places[name] = ServedPlace(name, self._endpoints[url], cache)

    async def _close(self) -> None:
        for endpoint in self._endpoints.values():
            await endpoint.watch.abandon()
            await endpoint.client.close()

    async def _trial(self, trial: Trial, on_tokens: OnTokens | None) -> TrialResult:
        """Release the requests of a trial together, and follow them to their end."""
        place = self._places[trial.condition.placement]
        endpoint = place.endpoint
        await self._warm_up(endpoint, len(trial.requests))
        await place.prepare(self._question(_probe_of(trial), None))
        progress = TrialProgress(len(trial.requests))
        streams = [Stream() for _ in trial.requests]
        retries_before = endpoint.retries
        await endpoint.watch.start()
        try:
            answers, elapsed_s = await self._release(place, trial, streams, progress, on_tokens)
        except BaseException:
            await endpoint.watch.abandon()
            raise
        progress.report(on_tokens)
        self._warm[endpoint.name] = (len(answers), perf_counter())
        counted = await endpoint.watch.stop(progress.done)
        place.count(trial, [answer[0] for answer in answers])
        first, *others = _by_choice(trial, answers)
        return TrialResult(
            completions=first,
            more_choices=tuple(others),
            generated_tokens=progress.tokens,
            elapsed_s=elapsed_s,
            load=agreed(counted, streams),
            filler_failures=Counter(
                answer[0].failure or MALFORMED
                for request, answer in zip(trial.requests, answers, strict=True)
                if answer[0].failed and not request.is_probe
            ),
            retries=endpoint.retries - retries_before,
        )

    async def _release(
        self,
        place: ServedPlace,
        trial: Trial,
        streams: Sequence[Stream],
        progress: TrialProgress,
        on_tokens: OnTokens | None,
    ) -> tuple[list[tuple[Completion, ...]], float]:
        """(choices of each request, seconds from the release to the last)."""
        barrier = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(keep_reporting(progress, on_tokens))
            asking = [
                group.create_task(self._answer(place, request, delay, barrier, stream, progress))
                for request, delay, stream in zip(
                    trial.requests, self._delays(trial), streams, strict=True
                )
            ]
            await asyncio.sleep(0)  # every request waits at the barrier now
            started = perf_counter()
            barrier.set()
            await asyncio.wait(asking)
            elapsed_s = perf_counter() - started
            reporting.cancel()
        return [task.result() for task in asking], elapsed_s

    async def _answer(
        self,
        place: ServedPlace,
        request: PlannedRequest,
        delay_s: float,
        barrier: asyncio.Event,
        stream: Stream,
        progress: TrialProgress,
    ) -> tuple[Completion, ...]:
        """The choices of one request of a trial; a failure is a completion too."""
        loop = asyncio.get_running_loop()
        reads = 0

        def on_tokens() -> None:
            nonlocal reads
            reads += 1
            progress.tokens += 1  # one a read, until the reply is whole and can be counted
            stream.saw_tokens(self._ticks.now(), loop.time())

        question = self._question(request, place.salt())
        await barrier.wait()
        if delay_s:
            await asyncio.sleep(delay_s)
        sent = loop.time()
        try:
            reply = await place.endpoint.ask(question, on_tokens)
            completions = reply.completions()
            if reply.hidden:  # any two such replies look equal
                raise Failure(MALFORMED, "tokens were generated, and none of them shown")
        except Failure as failure:
            progress.failed += 1
            failed = Completion("", "error", error=failure.phrase, failure=failure.kind)
            return (failed,) * question.choices
        place.endpoint.tally.add(reply, loop.time() - sent)
        if request.is_probe:
            place.reported.add(reply.usage.cached_tokens)
        if question.temperature > 0:
            place.endpoint.tally.choices.add(question, completions)
        progress.done += 1
        progress.tokens += reply.num_tokens - reads
        return completions

    def _question(self, request: PlannedRequest, cache_salt: str | None) -> Question:
        temperature = self._experiment.temperature
        chat = self._experiment.chat_of(request.prompt)
        choices = self._target.choices if request.is_probe else 1
        return Question(
            *(request.prompt, request.max_new_tokens, temperature, request.seed, cache_salt, chat),
            choices=choices,
        )

    def _delays(self, trial: Trial) -> list[float]:
        """Seconds after the barrier at which each request is sent."""
        rate = poisson_rate(self._target.arrivals)
        if rate is None:
            return [STEP_S * request.arrival_step for request in trial.requests]
        condition = trial.condition
        rng = random.Random(
            f"{self._experiment.load_seed}/{condition.prompt_index}/{condition.batch_size}/"
            f"{trial.index}/arrivals"
        )
        delays, now = [], 0.0
        for _ in trial.requests:
            now += rng.expovariate(rate)
            delays.append(now)
        return delays

    async def _warm_up(self, endpoint: Endpoint, number: int) -> None:
        """Open the connections of a trial, unless the trial before has left enough of them open."""
        before, when = self._warm.get(endpoint.name, (0, 0.0))
        if before < number or perf_counter() - when > WARM_S:
            await endpoint.client.open_connections(number)


def _ignore(_: str) -> None:
    """A callback that does nothing."""


def _by_choice(
    trial: Trial, answers: Sequence[Sequence[Completion]]
) -> list[tuple[tuple[int, Completion], ...]]:
    """(position in the trial, completion) of the probes, choice by choice."""
    probes = [
        (position, answer)
        for position, (request, answer) in enumerate(zip(trial.requests, answers, strict=True))
        if request.is_probe
    ]
    choices = len(probes[0][1])
    return [
        tuple((position, answer[choice]) for position, answer in probes)
        for choice in range(choices)
    ]


def _probe_of(trial: Trial) -> PlannedRequest:
    return next(request for request in trial.requests if request.is_probe)
