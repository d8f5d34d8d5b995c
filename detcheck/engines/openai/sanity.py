"""Before the experiment: a few short requests that show whether the endpoint does as it is told.

A verdict on an endpoint that answers from a cache, or ignores the seed, would be about these and
not about its kernels. The prompts are not those of the experiment, whose first request must meet
an empty prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detcheck.engines.openai import reach
from detcheck.engines.openai.endpoint import Endpoint, Question
from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import NEWER_LIMIT, OPTIONAL, Dialect
from detcheck.errors import MeasurementError, UsageError
from detcheck.experiment import Experiment
from detcheck.rundir import EndpointCheck
from detcheck.traffic import FILLER_PROMPTS

NUM_TOKENS = 12
"""Tokens of each of these replies."""
REPEATED = "List twelve unusual words, separated by commas."
FRESH = ("List twelve unusual animals, separated by commas.", "Name twelve towns, with commas.")
SAMPLED = "Make up twelve random names, separated by commas."
WARMTH = 1.0
IMPOSSIBLE = 0.05
"""A repeat that takes less than this share of a fresh request was not computed."""
MEASURABLE_S = 0.1
"""Fresh requests quicker than this say nothing about repeats."""
BAD_REQUEST = (400, 422)
FORBIDDEN = 403
MOST_ATTEMPTS = 5
"""Short requests may fail so often in a row, less one: that is data, and no reason not to begin."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One short reply, and how long it took."""

    reply: Reply
    elapsed_s: float


async def check(endpoint: Endpoint, experiment: Experiment) -> None:
    """Find the model and the dialect, and fill `endpoint.checks`.

    Raises UsageError or MeasurementError where the endpoint cannot be asked at all.
    """
    model, context = await reach.find_model(endpoint.client, endpoint.connection, experiment.model)
    endpoint.dialect = Dialect(model, chat=experiment.chat_template)
    _check_limit(endpoint, experiment, context)
    await endpoint.watch.look(model)
    first = await _learn_dialect(endpoint)
    await _check_context(endpoint, experiment, context)
    repeats = [await _probe(endpoint, REPEATED, seed=1)]
    fresh = []
    for prompt in FRESH:  # between repeats: ids may be made of the clock
        fresh.append(await _probe(endpoint, prompt))
        repeats.append(await _probe(endpoint, REPEATED, seed=1))
    other_seed = await _probe(endpoint, REPEATED, seed=2)
    sampled = [await _probe(endpoint, SAMPLED, WARMTH, seed) for seed in (11, 11, 12)]
    replies = [probe.reply for probe in (*repeats, other_seed, *fresh, *sampled)]
    for reply in (first.reply, *replies):
        endpoint.seen.add(reply)
    endpoint.seen.repeated_ids = 0  # what the probes say of a cache is judged below
    endpoint.checks = [
        served_model(endpoint),
        *dropped_fields(endpoint.dialect),
        _greedy(
            endpoint,
            [probe.reply for probe in repeats],
            other_seed.reply,
            needed=experiment.temperature == 0,
        ),
        _seed(endpoint, [probe.reply for probe in sampled], needed=experiment.temperature > 0),
        max_tokens(replies),
        logprobs(replies),
        no_cache(repeats, fresh),
        *failed_probes(endpoint.failed_probes),
    ]


def served_model(endpoint: Endpoint) -> EndpointCheck:
    """What is asked, and what will show its load."""
    load = "its own counters" if endpoint.watch.available else "its streams alone"
    path = endpoint.dialect.path
    sentence = f"{endpoint.dialect.model} at {endpoint.name}{path}, its load seen by {load}"
    return EndpointCheck("served model", None, sentence)


def dropped_fields(dialect: Dialect) -> list[EndpointCheck]:
    """What the server refuses to hear of."""
    if not dialect.dropped:
        return []
    names = ", ".join(sorted(dialect.dropped))
    return [EndpointCheck("fields", None, f"the server refuses {names}: left out")]


def _greedy(
    endpoint: Endpoint, replies: Sequence[Reply], other_seed: Reply, *, needed: bool
) -> EndpointCheck:
    found = greedy(replies, other_seed, needed=needed)
    if found.holds and "temperature" in endpoint.dialect.dropped:
        sentence = "the server takes no temperature: it may sample as it likes"
        return EndpointCheck("temperature 0", False, sentence)
    return found


def greedy(replies: Sequence[Reply], other_seed: Reply, *, needed: bool) -> EndpointCheck:
    """Whether one request, alone and at temperature 0, gets one answer whatever its seed.

    Where greedy answers are `needed`, one that is none is evidence that nothing may pass against.
    """
    if all(reply.hidden for reply in (*replies, other_seed)):
        sentence = f"replies of {NUM_TOKENS} tokens show none of them: there is nothing to compare"
        return EndpointCheck("temperature 0", None, sentence)
    if not any(reply.text or reply.has_token_ids for reply in (*replies, other_seed)):
        sentence = "every reply is empty: what the server says is not where the OpenAI API has it"
        return EndpointCheck("temperature 0", False, sentence, decisive=True)
    distinct = len({reply.text for reply in replies})
    if distinct > 1:
        sentence = f"{distinct} answers to {len(replies)} equal requests, one after the other"
        return EndpointCheck("temperature 0", False, sentence, decisive=needed)
    if other_seed.text != replies[0].text:
        sentence = "another seed gives another answer: the server samples at temperature 0"
        return EndpointCheck("temperature 0", False, sentence, decisive=needed)
    sentence = f"one answer to {len(replies) + 1} equal requests, one after the other"
    return EndpointCheck("temperature 0", True, sentence)


def _seed(endpoint: Endpoint, replies: Sequence[Reply], *, needed: bool) -> EndpointCheck:
    if "seed" in endpoint.dialect.dropped:
        return EndpointCheck("seed", False if needed else None, "the server takes no seed")
    return seed(replies, needed=needed)


def failed_probes(kinds: Mapping[str, int]) -> list[EndpointCheck]:
    """Short requests that failed and were asked again."""
    if not kinds:
        return []
    said = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return [EndpointCheck("short requests", False, f"some failed before one came back: {said}")]


def seed(replies: Sequence[Reply], *, needed: bool) -> EndpointCheck:
    """Whether sampling follows the seed: `replies` are to seeds A, A and B."""
    same, again, other = (reply.text for reply in replies)
    if same != again:
        return EndpointCheck("seed", False, "the same seed gave other samples", decisive=False)
    if same == other:
        # A model may be sure of its words: equal samples alone convict nobody.
        sentence = "samples with two seeds are equal: temperature or seed may be ignored"
        return EndpointCheck("seed", False if needed else None, sentence, decisive=needed)
    return EndpointCheck("seed", True, "the same seed gave the same sample, another seed another")


def max_tokens(replies: Sequence[Reply]) -> EndpointCheck:
    """Whether no reply is longer than was asked for."""
    longest = max(reply.num_tokens for reply in replies)
    holds = longest <= NUM_TOKENS
    sentence = f"replies of up to {longest} tokens where {NUM_TOKENS} were allowed"
    return EndpointCheck("max_tokens", holds, sentence)


def logprobs(replies: Sequence[Reply]) -> EndpointCheck:
    """Whether flips can be explained, and what fingerprints are made of."""
    made_of = "token ids" if all(reply.has_token_ids for reply in replies) else "text"
    if all(reply.has_candidates for reply in replies):
        sentence = f"each token came with a runner-up; fingerprints are of {made_of}"
        return EndpointCheck("logprobs", True, sentence)
    sentence = f"no runners-up came: why answers part stays unknown; fingerprints are of {made_of}"
    return EndpointCheck("logprobs", False, sentence)


def no_cache(repeats: Sequence[Probe], fresh: Sequence[Probe]) -> EndpointCheck:
    """Whether equal requests are computed anew: by the ids of replies, and by their time."""
    ids = [probe.reply.reply_id for probe in repeats]
    others = {probe.reply.reply_id for probe in fresh}
    told = [one for one in ids if one is not None]
    if len(told) > 1 and len(set(told)) == 1 and not others & set(told):
        sentence = "equal requests got replies with one id: they come from a cache"
        return EndpointCheck("no cache", False, sentence, decisive=True)
    took = min(probe.elapsed_s for probe in fresh)
    again = max(probe.elapsed_s for probe in repeats[1:])
    if took >= MEASURABLE_S and again < IMPOSSIBLE * took:
        sentence = (
            f"a repeat took {1000 * again:.0f} ms where a fresh request took {1000 * took:.0f}: it "
            "comes from a cache"
        )
        return EndpointCheck("no cache", False, sentence, decisive=True)
    return EndpointCheck("no cache", True, "equal requests were computed anew")


async def _probe(endpoint: Endpoint, prompt: str, temperature: float = 0.0, seed: int = 0) -> Probe:
    """One short reply; raises MeasurementError where it fails again and again."""
    question = Question(prompt, NUM_TOKENS, temperature, seed)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        try:
            return await _ask_once(endpoint, question)
        except Failure as failure:
            _count(endpoint, failure, attempt)
    raise AssertionError("unreachable")


async def _ask_once(endpoint: Endpoint, question: Question) -> Probe:
    loop = asyncio.get_running_loop()
    started = loop.time()
    reply = await endpoint.ask(question)
    reply.completion()
    return Probe(reply, loop.time() - started)


def _count(endpoint: Endpoint, failure: Failure, attempt: int) -> None:
    """Take note of a failed short request; raises MeasurementError where it was the last."""
    if attempt == MOST_ATTEMPTS and failure.kind == MALFORMED and not endpoint.seen.replies:
        raise reach.not_the_api(endpoint.client, failure, endpoint.dialect.path)
    if attempt == MOST_ATTEMPTS:
        raise _useless(endpoint, failure)
    endpoint.failed_probes[failure.kind] += 1


def _useless(endpoint: Endpoint, failure: Failure) -> MeasurementError:
    return MeasurementError(
        f"{endpoint.name} failed a short request ({failure.kind}: {failure.phrase}): look at the "
        "server's log."
    )


async def _learn_dialect(endpoint: Endpoint) -> Probe:
    """Ask with every field, and leave out those that are refused until an answer comes."""
    attempt = 1
    while True:
        try:
            return await _ask_once(endpoint, Question("Say hello.", NUM_TOKENS))
        except Failure as failure:
            if failure.status is None or failure.status >= 500:
                _count(endpoint, failure, attempt)
                attempt += 1
            else:
                endpoint.dialect = _simpler(endpoint, failure)


def _simpler(endpoint: Endpoint, failure: Failure) -> Dialect:
    """The dialect less what the server has just refused; raises where that is not the reason."""
    dialect, client = endpoint.dialect, endpoint.client
    status = failure.status or 0
    left = [name for name in OPTIONAL if name not in dialect.dropped]
    named = [name for name in left if name in failure.phrase]
    if status == FORBIDDEN and named:  # a field that this key may not use, as OpenAI's logprobs
        return dialect.without(_with_parts(named, dialect))
    refused = reach.refusal(client, endpoint.connection, status, failure.location)
    if refused is not None:
        raise refused
    if status in (404, 405):
        said = f" ({failure.phrase})"
        if "model" in failure.body.lower():
            raise UsageError(f"{client.base_url} does not serve {dialect.model}{said}.")
        raise reach.not_the_api(client, failure, dialect.path)
    if status not in BAD_REQUEST:
        raise _useless(endpoint, failure)
    if NEWER_LIMIT in failure.body and dialect.limit_field != NEWER_LIMIT:
        return dialect.with_newer_limit()
    named = named or [name for name in left if name in failure.body]
    if "chat template" in failure.body.lower() and dialect.chat:
        raise UsageError(
            f"{client.base_url} cannot chat with {dialect.model} ({failure.phrase}): give "
            "--no-chat-template."
        )
    if "context" in failure.body.lower() and not named:
        raise UsageError(f"{client.base_url} refuses even a short prompt ({failure.phrase}).")
    if not named and not left:
        raise _useless(endpoint, failure)
    return dialect.without(_with_parts(named or left[:1], dialect))


def _with_parts(names: list[str], dialect: Dialect) -> list[str]:
    """`top_logprobs` goes where `logprobs` goes."""
    return [*names, "top_logprobs"] if "logprobs" in names and dialect.chat else names


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
