"""Short requests to an endpoint, and how it learns what fields the server takes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from detcheck.engines.openai import reach
from detcheck.engines.openai.endpoint import Endpoint, Question
from detcheck.engines.openai.failures import HTTP_429, MALFORMED, Failure
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import NEWER_LIMIT, OPTIONAL, Dialect
from detcheck.errors import MeasurementError, UsageError

NUM_TOKENS = 12
"""Tokens of each of these replies."""
MOST_ATTEMPTS = 5
"""Short requests may fail so often in a row, less one: that is data, and no reason not to begin."""
BAD_REQUEST = (400, 422)
FORBIDDEN = 403


@dataclass(frozen=True, slots=True)
class Probe:
    """One short reply, and how long it took."""

    reply: Reply
    elapsed_s: float


async def probe(endpoint: Endpoint, prompt: str, temperature: float = 0.0, seed: int = 0) -> Probe:
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
    advice = (
        "wait for its rate limit, or ask for a higher one"
        if failure.kind == HTTP_429
        else "look at the server's log, or ask who runs it"
    )
    return MeasurementError(
        f"{endpoint.name} failed a short request ({failure.kind}: {failure.phrase}): {advice}."
    )


async def learn_dialect(endpoint: Endpoint) -> Probe:
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
