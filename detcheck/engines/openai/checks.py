"""What the short requests before an experiment show: each a check that holds, fails or is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.probing import NUM_TOKENS, Probe
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import Dialect
from detcheck.evidence import EndpointCheck

IMPOSSIBLE = 0.05
"""A repeat that takes less than this share of a fresh request was not computed."""
MEASURABLE_S = 0.1
"""Fresh requests quicker than this say nothing about repeats."""


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


def greedy(
    dialect: Dialect, replies: Sequence[Reply], other_seed: Reply, *, needed: bool
) -> EndpointCheck:
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
    if "temperature" in dialect.dropped:
        sentence = "the server takes no temperature: it may sample as it likes"
        return EndpointCheck("temperature 0", False, sentence)
    sentence = f"one answer to {len(replies) + 1} equal requests, one after the other"
    return EndpointCheck("temperature 0", True, sentence)


def seed(dialect: Dialect, replies: Sequence[Reply], *, needed: bool) -> EndpointCheck:
    """Whether sampling follows the seed: `replies` are to seeds A, A and B."""
    if "seed" in dialect.dropped:
        return EndpointCheck("seed", False if needed else None, "the server takes no seed")
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


def failed_probes(kinds: Mapping[str, int]) -> list[EndpointCheck]:
    """Short requests that failed and were asked again."""
    if not kinds:
        return []
    said = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return [EndpointCheck("short requests", False, f"some failed before one came back: {said}")]
