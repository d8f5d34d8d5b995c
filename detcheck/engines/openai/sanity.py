"""Before the experiment: a few short requests that show whether an endpoint follows requests.

A verdict on an endpoint that answers from a cache, or ignores the seed, would be about these and
not about its kernels. The checks use other prompts than the experiment, whose first request must
find no prefix cache, and the experiment's own temperature.
"""

from __future__ import annotations

import asyncio

from detcheck.engines.openai import checks, choices_checks, reach, seeds
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.later_answers import LaterAnswers
from detcheck.engines.openai.probing import (
    BAD_REQUEST,
    NUM_TOKENS,
    Probe,
    learn_dialect,
    probe,
    try_probe,
)
from detcheck.engines.openai.request import Dialect, Question
from detcheck.engines.openai.texts import own_words
from detcheck.errors import UsageError
from detcheck.evidence import EndpointCheck
from detcheck.experiment import Experiment
from detcheck.targets import Served
from detcheck.text import count
from detcheck.traffic import FILLER_PROMPTS

GREETING = "Say hello."
REPEATED = "List twelve unusual words, separated by commas."
FRESH = ("List twelve unusual animals, separated by commas.", "Name twelve towns, with commas.")


async def check(endpoint: Endpoint, experiment: Experiment, target: Served) -> None:
    """Find the model and the dialect, and fill `endpoint.checks`.

    Raises UsageError or MeasurementError if the endpoint cannot be asked at all.
    """
    limit_s = 2 * endpoint.connection.connect_s
    endpoint.on_wait(f"asking {endpoint.name} for its models, {limit_s:g} s at most")
    model, context = await reach.find_model(endpoint.client, endpoint.connection, target.model)
    filters = tuple(experiment.filters.items())
    endpoint.dialect = Dialect(model, chat=target.chat_template, filters=filters)
    _check_limit(endpoint, experiment, context)
    endpoint.on_wait(f"asking {endpoint.name} for its metrics, {limit_s:g} s at most")
    await endpoint.watch.look(model)
    temperature = experiment.temperature
    first = await learn_dialect(
        endpoint, Question(GREETING, NUM_TOKENS, temperature, experiment.seeds[0])
    )
    await _check_context(endpoint, experiment, context)
    repeats, fresh = [await probe(endpoint, REPEATED, temperature, seed=1)], []
    for prompt in FRESH:  # between repeats: ids may be made of the clock
        fresh.append(await probe(endpoint, prompt, temperature))
        repeats.append(await probe(endpoint, REPEATED, temperature, seed=1))
    greedy = await _greedy(endpoint, repeats, temperature)
    seed_checks, sampled = await seeds.check(endpoint, temperature)
    if target.choices > 1:
        seed_checks += await choices_checks.check(endpoint, temperature, target.choices)
    probes = (first, *repeats, *fresh, *sampled)
    _count(endpoint, probes)
    replies = [one.reply for one in probes]
    asked_before = zip((GREETING, REPEATED, *FRESH), (first, repeats[0], *fresh), strict=True)
    by_prompt = {prompt: one.reply for prompt, one in asked_before}
    before = {prompt: own_words(reply.text, prompt) for prompt, reply in by_prompt.items()}
    endpoint.later = LaterAnswers(before, fewest=3 if temperature > 0 else 2)
    asked = Question(
        *("", experiment.max_new_tokens, temperature, experiment.seeds[0]), choices=target.choices
    )
    endpoint.checks = [
        checks.served_model(endpoint),
        checks.request(endpoint.dialect, asked),
        *checks.dropped_fields(endpoint.dialect, temperature),
        greedy,
        *seed_checks,
        *checks.different_prompts(by_prompt),
        checks.max_tokens(replies),
        checks.logprobs(replies),
        checks.no_cache(repeats, fresh),
        *checks.failed_probes(endpoint.failed_probes),
    ]


async def learn_cold_cache(endpoint: Endpoint, experiment: Experiment) -> None:
    """Leave out the fields for a cold prefix cache that the server refuses."""
    question = Question(
        *(GREETING, NUM_TOKENS, experiment.temperature, experiment.seeds[0]), cache_salt="cold"
    )
    await learn_dialect(endpoint, question)


async def _greedy(endpoint: Endpoint, repeats: list[Probe], temperature: float) -> EndpointCheck:
    """Whether greedy requests get one answer; asked for anew if the experiment samples."""
    answers: list[Probe | Failure] = list(repeats)
    if temperature > 0:
        answers = [await try_probe(endpoint, REPEATED, 0.0, seed=1) for _ in range(2)]
    answers.append(await try_probe(endpoint, REPEATED, 0.0, seed=2))
    refusals = [answer for answer in answers if isinstance(answer, Failure)]
    if refusals:
        sentence = f"not needed here, and refused ({refusals[0].phrase})"
        return EndpointCheck("temperature 0", None, sentence)
    *replies, other_seed = [answer.reply for answer in answers if isinstance(answer, Probe)]
    return checks.greedy(endpoint.dialect, replies, other_seed, needed=temperature == 0)


def _count(endpoint: Endpoint, probes: tuple[Probe, ...]) -> None:
    """Count the replies; whether they come from a cache has a check of its own."""
    for one in probes:
        endpoint.tally.add(one.reply, one.elapsed_s)
    endpoint.tally.forget_repeats()


def _check_limit(endpoint: Endpoint, experiment: Experiment, context: int | None) -> None:
    if context is not None and experiment.max_new_tokens >= context:
        raise UsageError(
            f"The context of {endpoint.dialect.model} at {endpoint.name} is "
            f"{count(context, 'token')}, too short for "
            f"{count(experiment.max_new_tokens, 'new one')}: lower `max_new_tokens`."
        )


async def _check_context(endpoint: Endpoint, experiment: Experiment, context: int | None) -> None:
    """Whether the longest prompt and its answer fit: ask, and hang up at the first token.

    The words are sent in reverse, so that the prompt itself finds no warm prefix cache later.
    """
    fillers = FILLER_PROMPTS if experiment.traffic == "mixed" else ()
    longest = max((*experiment.prompts, *fillers), key=lambda prompt: len(prompt.encode()))
    bound = len(longest.encode("utf-8", "surrogatepass")) + experiment.max_new_tokens + NUM_TOKENS
    if context is not None and 2 * bound < context:
        return  # a token is a byte at the least
    reversed_words = " ".join(reversed(longest.split()))
    question = Question(
        reversed_words, experiment.max_new_tokens, experiment.temperature, experiment.seeds[0]
    )
    failure = await _until_first_token(endpoint, question)
    if failure is not None and failure.status in (*BAD_REQUEST, 413):
        raise UsageError(
            f"The longest prompt with {experiment.max_new_tokens} new tokens is too long for "
            f"{endpoint.dialect.model} at {endpoint.name} ({failure.phrase}): shorten it or lower "
            "`max_new_tokens`."
        )


async def _until_first_token(endpoint: Endpoint, question: Question) -> Failure | None:
    """Ask, and hang up at the first token or at the time limit of checks; the failure, if any."""
    limit_s = endpoint.connection.check_timeout_s
    endpoint.on_wait(f"trying the longest prompt at {endpoint.name}, {limit_s:g} s at most")
    came = asyncio.Event()
    asking = asyncio.create_task(endpoint.ask(question, came.set, limit_s=limit_s))
    waiting = asyncio.create_task(came.wait())
    try:
        await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
        failure = asking.exception() if asking.done() else None
        return failure if isinstance(failure, Failure) else None
    finally:
        for task in (asking, waiting):
            task.cancel()
        await asyncio.gather(asking, waiting, return_exceptions=True)
