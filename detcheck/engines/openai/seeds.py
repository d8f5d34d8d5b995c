"""Whether a server samples by the seed of each request: alone, in a batch, and on both paths."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.probing import NUM_TOKENS, Probe, ask_once, try_probe
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import Dialect, Question
from detcheck.evidence import EndpointCheck

SAMPLED = "Make up twelve random names, separated by commas."
ALONE = (11, 11, 12)
TOGETHER = (11, 12, 13, 11)
TEMPERATURE = 1.0
"""Used if the experiment itself is greedy."""


async def check(endpoint: Endpoint, temperature: float) -> tuple[list[EndpointCheck], list[Probe]]:
    """The checks of seeds at the experiment's temperature, and the replies they were made of.

    If the experiment samples, requests in flight together and the API's other path are checked too.
    """
    needed = temperature > 0
    asked = temperature or TEMPERATURE
    alone = [await try_probe(endpoint, SAMPLED, asked, seed) for seed in ALONE]
    probes = [probe for probe in alone if isinstance(probe, Probe)]
    if len(probes) < len(alone):
        refusal = next(probe for probe in alone if isinstance(probe, Failure))
        sentence = f"temperature {asked:g} is refused ({refusal.phrase})"
        return [EndpointCheck("seed", None, sentence)], probes
    checks = [alone_check(endpoint.dialect, [probe.reply for probe in probes], needed=needed)]
    if needed:
        if checks[0].holds:
            checks += await _together(endpoint, asked)
        checks.append(await _on_the_other_path(endpoint, asked))
    return checks, probes


def alone_check(dialect: Dialect, replies: Sequence[Reply], *, needed: bool) -> EndpointCheck:
    """Whether sampling follows the seed: `replies` are to seeds A, A and B, one after the other."""
    if "seed" in dialect.dropped:
        return EndpointCheck("seed", False if needed else None, "the server takes no seed")
    first, again, other = (reply.text for reply in replies)
    if first != again:
        return EndpointCheck("seed", False, "the same seed gave other samples")
    if first == other:  # no proof of a fault: a model may be sure of its words
        sentence = "samples with two seeds are equal: temperature or seed may be ignored"
        return EndpointCheck("seed", False if needed else None, sentence, decisive=needed)
    return EndpointCheck("seed", True, "the same seed gave the same sample, another seed another")


def together_check(texts: Sequence[str]) -> EndpointCheck:
    """Whether each request keeps its own seed: `texts` are of seeds A, B, C and A, together."""
    name = "seeds in a batch"
    first, second, third, again = texts
    if first == second == third:
        sentence = (
            "requests in flight together with three seeds got one sample: the server samples them "
            "all with one seed"
        )
        return EndpointCheck(name, False, sentence, decisive=True)
    if len({first, second, third}) < len({11, 12, 13}):
        sentence = "two of three seeds got one sample in flight together"
        return EndpointCheck(name, False, sentence)
    if first != again:
        sentence = "requests in flight together with one seed got other samples"
        return EndpointCheck(name, False, sentence)
    return EndpointCheck(name, True, "requests in flight together keep their own seeds")


async def _together(endpoint: Endpoint, temperature: float) -> list[EndpointCheck]:
    """Four requests at once; no check if one of them fails."""
    questions = [Question(SAMPLED, NUM_TOKENS, temperature, seed) for seed in TOGETHER]
    try:
        probes = await asyncio.gather(*(ask_once(endpoint, one) for one in questions))
    except Failure as failure:
        sentence = f"a short request in flight with others failed ({failure.phrase})"
        return [EndpointCheck("seeds in a batch", None, sentence)]
    return [together_check([probe.reply.text for probe in probes])]


async def _on_the_other_path(endpoint: Endpoint, temperature: float) -> EndpointCheck:
    """The same check on the path that the experiment does not use; it decides nothing."""
    own = endpoint.dialect
    endpoint.dialect = own.on_the_other_path()
    name = f"seed on {endpoint.dialect.path}"
    questions = [Question(SAMPLED, NUM_TOKENS, temperature, seed) for seed in ALONE]
    try:
        replies = [(await ask_once(endpoint, question)).reply for question in questions]
    except Failure as failure:
        return EndpointCheck(name, None, f"not to be had there ({failure.phrase})")
    finally:
        endpoint.dialect = own
    checked = alone_check(own, replies, needed=True)
    return replace(checked, name=name, decisive=False)
