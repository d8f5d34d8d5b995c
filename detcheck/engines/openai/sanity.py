"""Before the experiment: a few short requests that show whether the endpoint does as it is told.

A verdict on an endpoint that answers from a cache, or ignores the seed, would be about these and
not about its kernels. The prompts are not those of the experiment, whose first request must meet
an empty prefix cache.
"""

from __future__ import annotations

import asyncio

from detcheck.engines.openai import checks, reach
from detcheck.engines.openai.endpoint import Endpoint, Question
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.probing import BAD_REQUEST, NUM_TOKENS, learn_dialect, probe
from detcheck.engines.openai.request import Dialect
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.targets import Served
from detcheck.traffic import FILLER_PROMPTS

REPEATED = "List twelve unusual words, separated by commas."
FRESH = ("List twelve unusual animals, separated by commas.", "Name twelve towns, with commas.")
SAMPLED = "Make up twelve random names, separated by commas."
WARMTH = 1.0


async def check(endpoint: Endpoint, experiment: Experiment, target: Served) -> None:
    """Find the model and the dialect, and fill `endpoint.checks`.

    Raises UsageError or MeasurementError where the endpoint cannot be asked at all.
    """
    model, context = await reach.find_model(endpoint.client, endpoint.connection, target.model)
    endpoint.dialect = Dialect(model, chat=target.chat_template)
    _check_limit(endpoint, experiment, context)
    await endpoint.watch.look(model)
    first = await learn_dialect(endpoint)
    await _check_context(endpoint, experiment, context)
    repeats = [await probe(endpoint, REPEATED, seed=1)]
    fresh = []
    for prompt in FRESH:  # between repeats: ids may be made of the clock
        fresh.append(await probe(endpoint, prompt))
        repeats.append(await probe(endpoint, REPEATED, seed=1))
    other_seed = await probe(endpoint, REPEATED, seed=2)
    sampled = [await probe(endpoint, SAMPLED, WARMTH, seed) for seed in (11, 11, 12)]
    replies = [one.reply for one in (*repeats, other_seed, *fresh, *sampled)]
    for reply in (first.reply, *replies):
        endpoint.seen.add(reply)
    endpoint.seen.repeated_ids = 0  # what the probes say of a cache is judged below
    dialect, temperature = endpoint.dialect, experiment.temperature
    endpoint.checks = [
        checks.served_model(endpoint),
        *checks.dropped_fields(dialect),
        checks.greedy(
            dialect, [one.reply for one in repeats], other_seed.reply, needed=not temperature
        ),
        checks.seed(dialect, [one.reply for one in sampled], needed=temperature > 0),
        checks.max_tokens(replies),
        checks.logprobs(replies),
        checks.no_cache(repeats, fresh),
        *checks.failed_probes(endpoint.failed_probes),
    ]


def _check_limit(endpoint: Endpoint, experiment: Experiment, context: int | None) -> None:
    if context is not None and experiment.max_new_tokens >= context:
        raise UsageError(
            f"The context of {endpoint.dialect.model} at {endpoint.name} is {context} tokens, too "
            f"short for {experiment.max_new_tokens} new ones: lower --max-new-tokens."
        )


async def _check_context(endpoint: Endpoint, experiment: Experiment, context: int | None) -> None:
    """Whether the longest prompt and its answer fit: ask, and hang up at the first token.

    With its words in reverse, so that the prompt itself meets no warm prefix cache later.
    """
    fillers = FILLER_PROMPTS if experiment.traffic == "mixed" else ()
    longest = max((*experiment.prompts, *fillers), key=lambda prompt: len(prompt.encode()))
    bound = len(longest.encode("utf-8", "surrogatepass")) + experiment.max_new_tokens + NUM_TOKENS
    if context is not None and 2 * bound < context:
        return  # a token is a byte at the least
    came = asyncio.Event()
    reversed_words = " ".join(reversed(longest.split()))
    question = Question(reversed_words, experiment.max_new_tokens)
    asking = asyncio.create_task(endpoint.ask(question, came.set))
    waiting = asyncio.create_task(came.wait())
    try:
        await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
        if asking.done() and isinstance(asking.exception(), Failure):
            failure = asking.exception()
            assert isinstance(failure, Failure)
            if failure.status in (*BAD_REQUEST, 413):
                raise UsageError(
                    f"The longest prompt with {experiment.max_new_tokens} new tokens is too long "
                    f"for {endpoint.dialect.model} at {endpoint.name} ({failure.phrase}): shorten "
                    "it or lower --max-new-tokens."
                )
    finally:
        for task in (asking, waiting):
            task.cancel()
        await asyncio.gather(asking, waiting, return_exceptions=True)
