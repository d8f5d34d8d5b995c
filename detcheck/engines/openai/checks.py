"""The checks of an endpoint: each holds, fails, or could not be determined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from detcheck.completion import precision_of
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.later_answers import DIFFERENT_PROMPTS
from detcheck.engines.openai.probing import NUM_TOKENS, Probe
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import Dialect, Question
from detcheck.engines.openai.tally import IMPOSSIBLE, MEASURABLE_S, ReplyTally
from detcheck.engines.openai.texts import own_words
from detcheck.evidence import UNKNOWN_FIELDS, WHOLE_ANSWERS, EndpointCheck, Precision
from detcheck.text import count, quoted, verb

QUICKER = 0.5
"""With an earlier reply's id, a repeat that takes less than this share is a sign of a cache."""


def served_model(endpoint: Endpoint) -> EndpointCheck:
    """Names the model that is asked, and the source of evidence of its load."""
    load = "its own counters" if endpoint.watch.available else "its streams alone"
    path = endpoint.dialect.path
    sentence = f"{endpoint.dialect.model} at {endpoint.name}{path}, its load observed by {load}"
    return EndpointCheck("served model", None, sentence)


def request(dialect: Dialect, question: Question) -> EndpointCheck:
    """Every field of the experiment's requests as they are sent."""
    return EndpointCheck("request", None, dialect.sent(question))


def dropped_fields(dialect: Dialect, temperature: float) -> list[EndpointCheck]:
    """The fields that the server refuses; decisive if the experiment samples at a temperature."""
    if not dialect.dropped:
        return []
    names = ", ".join(sorted(dialect.dropped))
    sentence = f"the server refuses {names}: left out"
    asked = {"temperature": temperature, **dict(dialect.filters)}
    missing = [f"{name} {value:g}" for name, value in asked.items() if name in dialect.dropped]
    if not missing or temperature == 0:
        return [EndpointCheck("fields", None, sentence)]
    sentence += f"; so no answer is known to be sampled at {' and '.join(missing)}"
    return [EndpointCheck("fields", False, sentence, decisive=True)]


def greedy(
    dialect: Dialect, replies: Sequence[Reply], other_seed: Reply, *, needed: bool
) -> EndpointCheck:
    """Whether one request, alone and at temperature 0, gets one answer with any seed.

    If greedy answers are `needed`, sampled ones make the verdict inconclusive.
    """
    name, every = "temperature 0", (*replies, other_seed)
    if all(reply.hidden for reply in every):
        sentence = f"replies of {NUM_TOKENS} tokens show none of them: there is nothing to compare"
        return EndpointCheck(name, None, sentence)
    if not any(reply.text or reply.has_token_ids for reply in every):
        sentence = "every reply is empty: its text is not where the OpenAI API has it"
        return EndpointCheck(name, False, sentence, decisive=True)
    distinct = len({reply.text for reply in replies})
    if distinct > 1:
        sentence = f"{distinct} answers to {len(replies)} equal requests, one after the other"
        return EndpointCheck(name, False, sentence, decisive=needed)
    if other_seed.text != replies[0].text:
        sentence = "another seed gives another answer: the server samples at temperature 0"
        return EndpointCheck(name, False, sentence, decisive=needed)
    if "temperature" in dialect.dropped:
        sentence = "the server takes no temperature: it may sample at any"
        return EndpointCheck(name, False, sentence)
    sentence = f"one answer to {len(every)} equal requests, one after the other"
    return EndpointCheck(name, True, sentence)


def different_prompts(replies: Mapping[str, Reply]) -> list[EndpointCheck]:
    """Whether `replies`, by prompt, differ in more than numbers and the prompts themselves."""
    texts = [reply.text for reply in replies.values() if reply.text.strip()]
    if len(texts) < len(replies):
        return []  # empty answers have a check of their own
    if len({own_words(reply.text, prompt) for prompt, reply in replies.items()}) > 1:
        sentence = f"{len(texts)} different prompts got different answers"
        return [EndpointCheck(DIFFERENT_PROMPTS, True, sentence)]
    sentence = (
        f"{len(texts)} different prompts got one answer ({quoted(texts[0], 60)}): the server does "
        "not answer what it is asked"
    )
    return [EndpointCheck(DIFFERENT_PROMPTS, False, sentence, decisive=True)]


def max_tokens(replies: Sequence[Reply]) -> EndpointCheck:
    """Whether no reply is longer than was asked for."""
    longest = max(reply.num_tokens for reply in replies)
    holds = longest <= NUM_TOKENS
    sentence = f"replies of up to {count(longest, 'token')}, of {NUM_TOKENS} that were allowed"
    return EndpointCheck("max_tokens", holds, sentence)


def logprobs(replies: Sequence[Reply]) -> EndpointCheck:
    """Whether flips can be explained, and whether fingerprints are of token ids or of text."""
    identity = "token ids" if all(reply.has_token_ids for reply in replies) else "text"
    if all(reply.has_candidates for reply in replies):
        rounding = _rounding(replies)
        rounded = f", rounded {rounding}" if rounding else ""
        sentence = f"each token came with a runner-up{rounded}; fingerprints are of {identity}"
        return EndpointCheck("logprobs", True, sentence)
    sentence = f"no runners-up came, so flips stay unexplained; fingerprints are of {identity}"
    return EndpointCheck("logprobs", False, sentence)


def _rounding(replies: Sequence[Reply]) -> str:
    """How the log-probabilities are rounded, such as `to 4 decimals`; empty if they are not."""
    ranked = [one for reply in replies if (one := reply.completion().top_two) is not None]
    found = [precision_of(top_two) for top_two in ranked]
    return reduce(Precision.joined, found).rounding if found else ""


def no_cache(repeats: Sequence[Probe], fresh: Sequence[Probe]) -> EndpointCheck:
    """Whether equal requests are computed anew: by their time, and by the ids of their replies.

    Ids alone decide nothing: they may be made of the request.
    """
    took = min(probe.elapsed_s for probe in fresh)
    again = max(probe.elapsed_s for probe in repeats[1:])
    times = f"a repeat took {1000 * again:.0f} ms, a fresh request {1000 * took:.0f}"
    if took >= MEASURABLE_S and again < IMPOSSIBLE * took:
        return EndpointCheck("no cache", False, f"{times}: it comes from a cache", decisive=True)
    if not _one_id(repeats, fresh):
        return EndpointCheck("no cache", True, "equal requests were computed anew")
    if again < QUICKER * took:
        sign = times
    elif max(probe.arrivals for probe in repeats[1:]) == 1 < min(p.arrivals for p in fresh):
        sign = "repeats came in one piece, fresh replies did not"
    elif _stamped_alike(repeats, fresh):
        sign = "repeats had the time stamp of the first"
    else:
        sentence = "equal requests got replies with one id, but were computed by their time"
        return EndpointCheck("no cache", False, sentence)
    sentence = f"equal requests got replies with one id, and {sign}: they come from a cache"
    return EndpointCheck("no cache", False, sentence, decisive=True)


def failed_probes(kinds: Mapping[str, int]) -> list[EndpointCheck]:
    """Short requests that failed and were asked again."""
    if not kinds:
        return []
    failed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return [EndpointCheck("short requests", False, f"some failed before one succeeded: {failed}")]


def over_the_run(tally: ReplyTally) -> list[EndpointCheck]:
    """The checks that rest on all replies up to now."""
    return [
        _system_fingerprint(tally),
        *_reply_ids(tally),
        *_partial_ids(tally),
        *_whole_answers(tally),
        *tally.choices.checks(),
    ]


def _system_fingerprint(tally: ReplyTally) -> EndpointCheck:
    name = "system_fingerprint"
    prints = sorted(tally.system_fingerprints)
    if len(prints) > 1:
        sentence = (
            f"{len(prints)} different ones ({', '.join(prints[:4])}): replicas behind a balancer "
            "differ, or the server was restarted"
        )
        return EndpointCheck(name, False, sentence)
    if prints and tally.without_fingerprint:
        sentence = f"{prints[0]} on some replies and none on others: replicas may differ"
        return EndpointCheck(name, False, sentence)
    if prints:
        return EndpointCheck(name, True, f"always {prints[0]}")
    return EndpointCheck(name, None, "the server gives none")


def _reply_ids(tally: ReplyTally) -> list[EndpointCheck]:
    name = "ids of replies"
    if tally.cached:
        sentence = (
            f"{count(tally.cached, 'reply')} had the id of an earlier one, and its time stamp or a "
            "time in which nothing can be computed: they come from a cache"
        )
        return [EndpointCheck(name, False, sentence, decisive=True)]
    if not tally.repeated_ids or tally.repeated_ids >= tally.replies // 2:
        return []
    sentence = (
        f"{count(tally.repeated_ids, 'reply')} had the id of an earlier one, but were computed by "
        "their time: ids are drawn from a small pool"
    )
    return [EndpointCheck(name, False, sentence)]


def _partial_ids(tally: ReplyTally) -> list[EndpointCheck]:
    if tally.with_other_text:
        sentence = (
            f"equal token ids came with different texts ({count(tally.with_other_text, 'time')}): "
            "the ids are not those of the whole answer, and nothing can be compared by them"
        )
        return [EndpointCheck("token ids", False, sentence, decisive=True)]
    if not tally.with_partial_ids:
        return []
    sentence = (
        f"in {tally.with_partial_ids} of {count(tally.replies, 'reply')} they are not those of the "
        "whole answer: compared by text"
    )
    return [EndpointCheck("token ids", False, sentence)]


def _whole_answers(tally: ReplyTally) -> list[EndpointCheck]:
    """Whether all that was generated was shown, and all that was shown was read."""
    checks = []
    if tally.with_unseen_tokens:
        were = verb(tally.unseen_tokens, "was", "were")
        sentence = (
            f"{count(tally.unseen_tokens, 'token')} in {tally.with_unseen_tokens:,} of "
            f"{count(tally.replies, 'reply')} {were} counted and never shown: only the shown text "
            "is compared"
        )
        checks.append(EndpointCheck(WHOLE_ANSWERS, False, sentence))
    elif tally.uncounted:
        sentence = (
            f"{tally.uncounted:,} of {count(tally.replies, 'reply')} came without a count of their "
            "tokens: whether all that was generated was shown is not known"
        )
        checks.append(EndpointCheck(WHOLE_ANSWERS, None, sentence))
    if tally.unread:
        names = ", ".join(sorted(tally.unread))
        sentence = f"replies hold fields that detcheck does not know and does not compare: {names}"
        checks.append(EndpointCheck(UNKNOWN_FIELDS, False, sentence))
    return checks


def _one_id(repeats: Sequence[Probe], fresh: Sequence[Probe]) -> bool:
    """True if all repeats have one id, and the fresh replies have others."""
    ids = [probe.reply.reply_id for probe in repeats]
    others = {probe.reply.reply_id for probe in fresh}
    return None not in ids and len(set(ids)) == 1 and ids[0] not in others


def _stamped_alike(repeats: Sequence[Probe], fresh: Sequence[Probe]) -> bool:
    """True if the last repeat has the time stamp of the first, and a fresh one had a later one."""
    stamps = {probe.reply.created for probe in repeats}
    (first, *more) = stamps
    return first is not None and not more and any((p.reply.created or 0) > first for p in fresh)
