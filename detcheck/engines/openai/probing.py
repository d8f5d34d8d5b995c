"""Short requests to an endpoint, and how the fields that its server takes are learnt."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from detcheck.engines.openai import reach
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import HTTP_429, MALFORMED, TIMEOUT, Failure
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import NEWER_LIMIT, OPTIONAL, Dialect, Question
from detcheck.errors import MeasurementError, UsageError

NUM_TOKENS = 12
"""Tokens of each of these replies."""
MOST_ATTEMPTS = 5
"""A short request may fail this often less one: some failures are data, and no reason to stop."""
MOST_TIMEOUTS = 2
MOST_REFUSALS = 2
MOST_NAMED = 4
"""A refusal that names so many fields, and all of them, shows the request."""
BAD_REQUEST = (400, 422)
FORBIDDEN = 403


@dataclass(frozen=True, slots=True)
class Probe:
    """One short reply."""

    reply: Reply
    elapsed_s: float
    """From sending the request to the end of the reply."""
    arrivals: int = 1
    """Reads of the connection that brought tokens."""


async def probe(endpoint: Endpoint, prompt: str, temperature: float = 0.0, seed: int = 0) -> Probe:
    """Return one short reply; raise MeasurementError if the request fails again and again."""
    return await _keep_asking(endpoint, Question(prompt, NUM_TOKENS, temperature, seed))


async def try_probe(
    endpoint: Endpoint, prompt: str, temperature: float = 0.0, seed: int = 0
) -> Probe | Failure:
    """Return one short reply, or the Failure if the server refuses such a request."""
    question = Question(prompt, NUM_TOKENS, temperature, seed)
    for _ in range(MOST_REFUSALS):
        try:
            return await ask_once(endpoint, question)
        except Failure as failure:
            refusal = failure
            if failure.status not in BAD_REQUEST:
                return await _keep_asking(endpoint, question)
    return refusal


async def ask_once(endpoint: Endpoint, question: Question) -> Probe:
    """Return one reply, within the time limit of checks; raise Failure if it is no answer."""
    limit_s = endpoint.connection.check_timeout_s
    endpoint.on_wait(f"waiting for a short answer of {endpoint.name}, {limit_s:g} s at most")
    arrivals = 0

    def on_tokens() -> None:
        nonlocal arrivals
        arrivals += 1

    loop = asyncio.get_running_loop()
    started = loop.time()
    reply = await endpoint.ask(question, on_tokens, limit_s=limit_s)
    reply.completions()
    endpoint.has_answered = True
    return Probe(reply, loop.time() - started, arrivals)


async def learn_dialect(endpoint: Endpoint, question: Question) -> Probe:
    """Ask with every field, and leave out those that are refused, until an answer comes.

    `question` has the experiment's own temperature and seed: a server may refuse other values.
    """
    attempt = 1
    while True:
        try:
            return await ask_once(endpoint, question)
        except Failure as failure:
            if failure.status is None or failure.status >= 500:
                _count(endpoint, failure, attempt)
                attempt += 1
            else:
                endpoint.dialect = _simpler(endpoint, question, failure)


async def _keep_asking(endpoint: Endpoint, question: Question) -> Probe:
    for attempt in range(1, MOST_ATTEMPTS + 1):
        try:
            return await ask_once(endpoint, question)
        except Failure as failure:
            _count(endpoint, failure, attempt)
    raise AssertionError("unreachable")


def _count(endpoint: Endpoint, failure: Failure, attempt: int) -> None:
    """Count a failed short request; raise MeasurementError or UsageError if it was the last."""
    endpoint.failed_probes[failure.kind] += 1
    timeouts = endpoint.failed_probes[TIMEOUT]
    if failure.kind == TIMEOUT and (not endpoint.has_answered or timeouts > MOST_TIMEOUTS):
        raise _silent(endpoint)
    if attempt < MOST_ATTEMPTS:
        return
    if failure.kind == MALFORMED and not endpoint.has_answered:
        raise reach.not_the_api(endpoint.client, failure, endpoint.dialect.path)
    raise _useless(endpoint, failure)


def _silent(endpoint: Endpoint) -> MeasurementError:
    limit_s = min(endpoint.connection.check_timeout_s, endpoint.connection.total_s)
    return MeasurementError(
        f"{endpoint.name} took a request for {NUM_TOKENS} tokens and did not answer it within "
        f"{limit_s:g} s: look at the server's log, or allow more time by `check_timeout_s`."
    )


def _useless(endpoint: Endpoint, failure: Failure) -> MeasurementError:
    advice = (
        "wait for its rate limit, or ask for a higher one"
        if failure.kind == HTTP_429
        else "look at the server's log, or ask who runs it"
    )
    return MeasurementError(
        f"{endpoint.name} failed a short request ({failure.kind}: {failure.phrase}): {advice}."
    )


def _simpler(endpoint: Endpoint, question: Question, failure: Failure) -> Dialect:
    """The dialect without the fields that the server has just refused.

    Raises UsageError or MeasurementError if the refusal was about something else.
    """
    dialect, client = endpoint.dialect, endpoint.client
    status = failure.status or 0
    left = [name for name in OPTIONAL if name in dialect.fields(question)]
    named = _named(left, failure.phrase)
    if status == FORBIDDEN and named:  # a field that this key may not use, as OpenAI's logprobs
        return dialect.without(_with_parts(named, dialect))
    refused = reach.refusal(client, endpoint.connection, status, failure.location)
    if refused is not None:
        raise refused
    if status in (404, 405):
        raise _not_served(endpoint, failure)
    if status not in BAD_REQUEST:
        raise _useless(endpoint, failure)
    if NEWER_LIMIT in failure.body and dialect.limit_field != NEWER_LIMIT:
        return dialect.with_newer_limit()
    named = named or _named(left, failure.body)
    if "chat template" in failure.body.lower() and dialect.chat:
        raise UsageError(
            f"{client.base_url} cannot chat with {dialect.model} ({failure.phrase}): use "
            "`chat_template=False`."
        )
    if "context" in failure.body.lower() and not named:
        raise UsageError(f"{client.base_url} refuses even a short prompt ({failure.phrase}).")
    if not named and not left:
        raise _useless(endpoint, failure)
    return dialect.without(_with_parts(named or left[:1], dialect))


def _not_served(endpoint: Endpoint, failure: Failure) -> UsageError:
    if "model" in failure.body.lower():
        return UsageError(
            f"{endpoint.name} does not serve {endpoint.dialect.model} ({failure.phrase})."
        )
    return reach.not_the_api(endpoint.client, failure, endpoint.dialect.path)


def _named(names: list[str], words: str) -> list[str]:
    """Those of `names` that a refusal is about; none if it repeats the whole request."""
    named = [name for name in names if re.search(rf"(?<![a-z_]){name}(?![a-z_])", words)]
    return [] if len(named) == len(names) > MOST_NAMED else named


def _with_parts(names: list[str], dialect: Dialect) -> list[str]:
    """`top_logprobs` is left out with `logprobs`."""
    return [*names, "top_logprobs"] if "logprobs" in names and dialect.chat else names
