"""Whether a server gives several choices of one request, and numbers them by the seed."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from detcheck.engines.openai.choices_tally import CHOICES
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.probing import NUM_TOKENS, ask_once
from detcheck.engines.openai.request import Question
from detcheck.engines.openai.seeds import SAMPLED
from detcheck.errors import MeasurementError
from detcheck.evidence import EndpointCheck

ONE_AFTER_THE_OTHER = "choices of equal requests"
SEED = 11


async def check(endpoint: Endpoint, temperature: float, choices: int) -> list[EndpointCheck]:
    """The checks of requests for several choices, on the path in use and on the other one.

    Raises MeasurementError if the server does not give them on the path in use.
    """
    try:
        own = await _ask_twice(endpoint, temperature, choices)
    except Failure as failure:
        raise MeasurementError(
            f"{endpoint.name} does not give {choices} choices of one request ({failure.phrase}): "
            "leave `choices` out."
        ) from failure
    found = replies_check(own, sampled=temperature > 0)
    return [found, await _on_the_other_path(endpoint, temperature, choices)]


def replies_check(replies: Sequence[Sequence[str]], *, sampled: bool) -> EndpointCheck:
    """Compare the choices of two equal requests, asked one after the other, as texts."""
    first, again = replies
    if sampled and len(set(first)) == 1:
        sentence = f"the {len(first)} choices of a request are one sample, cloned"
        return EndpointCheck(ONE_AFTER_THE_OTHER, False, sentence, decisive=True)
    if not sampled and len(set(first)) > 1:
        sentence = f"the {len(first)} choices of a request differ at temperature 0"
        return EndpointCheck(ONE_AFTER_THE_OTHER, False, sentence)
    if first == again:
        sentence = f"an equal request gave the same {len(first)} choices"
        return EndpointCheck(ONE_AFTER_THE_OTHER, True, sentence)
    if sorted(first) == sorted(again):
        sentence = "an equal request gave the same choices under other numbers"
    else:
        sentence = "an equal request gave other choices: their seeds may not follow the request's"
    return EndpointCheck(ONE_AFTER_THE_OTHER, False, sentence)


async def _ask_twice(endpoint: Endpoint, temperature: float, choices: int) -> list[tuple[str, ...]]:
    """The texts of the choices of two equal requests; raises Failure if one is no answer."""
    question = Question(SAMPLED, NUM_TOKENS, temperature, SEED, choices=choices)
    replies = [(await ask_once(endpoint, question)).reply for _ in range(2)]
    return [tuple(one.text for one in reply.completions()) for reply in replies]


async def _on_the_other_path(endpoint: Endpoint, temperature: float, choices: int) -> EndpointCheck:
    """The same check on the path that the experiment does not use; it decides nothing."""
    own = endpoint.dialect
    endpoint.dialect = own.on_the_other_path()
    name = f"{CHOICES} on {endpoint.dialect.path}"
    try:
        replies = await _ask_twice(endpoint, temperature, choices)
    except Failure as failure:
        return EndpointCheck(name, None, f"not to be had there ({failure.phrase})")
    finally:
        endpoint.dialect = own
    return replace(replies_check(replies, sampled=temperature > 0), name=name, decisive=False)
