"""Asks the prompts of the checks again, during and after the experiment.

A server may answer well until the checks are over, and then give one sentence to every request: an
overload, a rate limit, a refusal. An experiment of one prompt cannot tell that from one answer to
its prompt. So the prompts of the checks are asked again, now and then, as many at once as the
trial before had in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from itertools import cycle, islice

from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.failures import Failure
from detcheck.engines.openai.probing import NUM_TOKENS, ask_once
from detcheck.engines.openai.request import Question

MOST_TOGETHER = 32
SEED = 1


async def ask(endpoint: Endpoint, together: int, temperature: float, own: Collection[str]) -> None:
    """Ask the prompts of the checks, all of them or more at once; what fails is left out.

    `own` are the answers of the trial before, which had `together` requests in flight.
    """
    later = endpoint.later
    later.at_s = {**later.at_s, together: asyncio.get_running_loop().time()}
    number = max(len(later.before), min(together, MOST_TOGETHER))
    prompts = list(islice(cycle(later.before), number))
    asked = (Question(prompt, NUM_TOKENS, temperature, SEED) for prompt in prompts)
    replies = await asyncio.gather(*(_answer(endpoint, question) for question in asked))
    later.silent = not any(text is not None for text in replies)
    pairs = zip(prompts, replies, strict=True)
    later.judge([(prompt, text) for prompt, text in pairs if text is not None], own)


async def _answer(endpoint: Endpoint, question: Question) -> str | None:
    try:
        return (await ask_once(endpoint, question)).reply.text
    except Failure:
        return None
