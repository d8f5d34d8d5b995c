"""The checks before the experiment: each fails on its planted fault and holds without it."""

from __future__ import annotations

import json

import pytest
from sweeps import few

from detcheck.analysis.evidence import INCONCLUSIVE
from detcheck.engines.openai.checks import different_prompts, max_tokens, no_cache
from detcheck.engines.openai.open_files import allow_open_files
from detcheck.engines.openai.probing import NUM_TOKENS, Probe
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.seeds import together_check
from detcheck.errors import UsageError
from detcheck.gate import judge


def checks(analysis) -> dict[str, bool | None]:
    return {check.name: check.holds for check in analysis.run.endpoint_checks}


SOUND = {
    "served model": None,
    "request": None,
    "temperature 0": True,
    "seed": True,
    "different prompts": True,
    "max_tokens": True,
    "logprobs": True,
    "no cache": True,
    "system_fingerprint": True,
}


def test_every_check_of_a_sound_server_holds(serve, measure):
    assert checks(measure(serve())) == SOUND


@few(
    ("fields", "name"),
    [
        ({"ignores_seed": True}, "seed"),
        ({"ignores_temperature": True}, "temperature 0"),
        ({"ignores_max_tokens": True}, "max_tokens"),
        ({"logprobs": False}, "logprobs"),
        ({"cache": True}, "no cache"),
        ({"fingerprints": ("fp_1", "fp_2")}, "system_fingerprint"),
    ],
    every=3,
)
def test_a_planted_fault_fails_its_check(serve, measure, fields, name):
    assert checks(measure(serve(**fields)))[name] is False


@few("compression", ["gzip", "deflate"], every=2)
def test_a_server_that_compresses_its_replies_is_measured(serve, measure, compression):
    assert checks(measure(serve(compresses=compression))) == SOUND


def test_another_compression_is_named_with_advice(serve, measure):
    with pytest.raises(UsageError) as caught:
        measure(serve(compresses="br"))
    assert "compresses its replies (content-encoding br)" in str(caught.value)
    assert "/v1:" not in str(caught.value)


def cumulative(length: int, *, with_ids: bool = False) -> Reply:
    """A reply whose chunks hold all of the text (and ids) so far, and the last one once more."""
    reply = Reply(NUM_TOKENS)
    for end in (*range(1, length + 1), length):
        choice = {"delta": {"content": "".join(f" {word}" for word in range(end))}}
        if with_ids:
            choice["token_ids"] = list(range(end))
        reply.add({"choices": [choice]})
    reply.add({"choices": [{"delta": {}, "finish_reason": "length"}]})
    return reply


@pytest.mark.parametrize("with_ids", [False, True])
def test_cumulative_chunks_are_counted_once(with_ids):
    held = max_tokens([cumulative(NUM_TOKENS, with_ids=with_ids)])
    assert (held.holds, held.sentence) == (
        True,
        "replies of up to 12 tokens, of 12 that were allowed",
    )
    assert max_tokens([cumulative(NUM_TOKENS + 1, with_ids=with_ids)]).holds is False


def test_answers_from_a_cache_are_inconclusive(serve, measure):
    judged = judge(measure(serve(cache=True)))
    assert judged.value == INCONCLUSIVE
    assert any("cache" in reason for reason in judged.reasons)


@few("refused", ["return_token_ids", "stream_options", "logprobs", "seed", "top_logprobs"], every=3)
def test_refused_field_is_left_out_and_reported(serve, measure, refused):
    analysis = measure(serve(refuses=(refused,)))
    said = {check.name: check.sentence for check in analysis.run.endpoint_checks}
    assert refused in said["fields"]
    assert analysis.groups[0].completions == 27


def test_a_field_that_the_key_may_not_use_is_left_out(serve, measure):
    analysis = measure(serve(refuses=("logprobs",), refusal=403))
    said = {check.name: check.sentence for check in analysis.run.endpoint_checks}
    assert said["fields"] == "the server refuses logprobs, top_logprobs: left out"
    assert analysis.groups[0].completions == 27


def test_run_keeps_what_was_really_sent(serve, measure):
    run = measure(serve(refuses=("seed",)), temperature=0.7, max_new_tokens=5).run
    (sent,) = (check.sentence for check in run.endpoint_checks if check.name == "request")
    path, fields = sent.removeprefix("POST ").split(" ", 1)
    assert path == "/chat/completions"
    assert json.loads(fields) == {
        **{"model": "toy", "max_tokens": 5, "temperature": 0.7, "logprobs": True},
        **{"top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}},
        "return_token_ids": True,
    }
    assert (run.model.name, run.model.decoding) == ("toy", {"seed": "not sent"})


FILTERED = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_new_tokens": 5}


def test_filters_of_sampling_are_sent(serve, measure):
    run = measure(serve(), **FILTERED).run
    said = {check.name: check.sentence for check in run.endpoint_checks}
    assert '"top_k":20,"top_p":0.9' in said["request"]
    assert "min_p" not in said["request"]
    assert run.model.decoding == {}


def test_a_filter_that_the_server_refuses_is_decisive(serve, measure):
    run = measure(serve(refuses=("top_p",)), **FILTERED).run
    (refused,) = [check for check in run.endpoint_checks if check.name == "fields"]
    assert refused.decisive
    assert refused.sentence.endswith("so no answer is known to be sampled at top_p 0.9")
    assert run.model.decoding == {"top_p": "not sent"}


def test_refused_temperature_is_not_taken_for_0(serve, measure):
    analysis = measure(serve(refuses=("temperature",)))
    (check,) = (c for c in analysis.run.endpoint_checks if c.name == "temperature 0")
    assert check.holds is False
    assert "samples" in check.sentence


def test_answers_without_shown_tokens_are_not_called_equal(serve, measure):
    analysis = measure(serve(hides=True))
    (group,) = analysis.groups
    assert checks(analysis)["temperature 0"] is None
    assert (group.completions, set(group.failures)) == (0, {"malformed"})


def test_answers_that_are_all_empty_are_inconclusive(serve, measure):
    server = serve(hides=True, ends="stop", usage=False)
    judged = judge(measure(server))
    assert judged.value == INCONCLUSIVE
    assert any("is empty" in reason for reason in judged.reasons)


def probe(
    text: str, reply_id: str, elapsed_s: float, *, arrivals: int = 3, created: int | None = None
) -> Probe:
    reply = Reply(12)
    choice = {"delta": {"content": text}, "finish_reason": "stop"}
    reply.add({"id": reply_id, "created": created, "choices": [choice]})
    return Probe(reply, elapsed_s, arrivals)


@pytest.mark.parametrize(
    ("repeats", "fresh", "holds", "decisive"),
    [
        ([("a", 1.0), ("b", 1.0), ("c", 1.0)], [("d", 1.0)], True, False),
        ([("a", 1.0), ("a", 1.0), ("a", 1.0)], [("d", 1.0)], False, False),  # made of the request
        ([("a", 1.0), ("a", 0.3), ("a", 0.4)], [("d", 1.0)], False, True),
        ([("a", 0.01), ("a", 0.001), ("a", 0.001)], [("d", 0.01)], False, True),
        ([("a", 1.0), ("a", 1.0), ("a", 1.0)], [("a", 1.0)], True, False),  # one id for all
        ([("a", 1.0), ("b", 0.001), ("c", 0.001)], [("d", 1.0)], False, True),
        ([("a", 1.0), ("b", 0.5), ("c", 0.001)], [("d", 1.0)], True, False),  # one was computed
        ([("a", 0.01), ("b", 0.0001), ("c", 0.0001)], [("d", 0.01)], True, False),  # too quick
    ],
)
def test_cache_is_known_by_time_or_by_ids_and_another_sign(repeats, fresh, holds, decisive):
    found = no_cache([probe("x", *one) for one in repeats], [probe("y", *one) for one in fresh])
    assert (found.holds, found.decisive) == (holds, decisive)


def test_cache_is_known_by_ids_and_replies_in_one_piece():
    repeats = [probe("x", "a", 1.0, arrivals=n) for n in (9, 1, 1)]
    fresh = [probe("y", id_, 1.0, arrivals=9) for id_ in "bc"]
    assert no_cache(repeats, fresh).decisive
    assert not no_cache(repeats[:1] + fresh, fresh).decisive


def test_cache_is_known_by_ids_and_an_old_time_stamp():
    repeats = [probe("x", "a", 1.0, created=100) for _ in range(3)]
    fresh = [probe("y", id_, 1.0, created=101) for id_ in "bc"]
    assert no_cache(repeats, fresh).decisive
    unmoved = [probe("y", id_, 1.0, created=100) for id_ in "bc"]
    assert not no_cache(repeats, unmoved).decisive


@pytest.mark.parametrize(
    ("texts", "holds"),
    [
        (("one", "two", "three"), True),
        (("Service temporarily overloaded",) * 3, False),
        (("Overloaded (request 17)", "Overloaded (request a3f9)", "overloaded"), True),
        (("Overloaded (request 17)", "overloaded (request 18)", "Overloaded (request a9)"), False),
        (tuple(f'Overloaded: no answer to "Prompt {n}?" now' for n in range(3)), False),
        (tuple(f"Prompt {n}? {word}" for n, word in enumerate(("one", "two", "three"))), True),
    ],
)
def test_one_answer_to_all_prompts_is_decisive(texts, holds):
    replies = {f"Prompt {n}?": probe(text, "a", 1.0).reply for n, text in enumerate(texts)}
    (found,) = different_prompts(replies)
    assert (found.holds, found.decisive) == (holds, not holds)


def test_empty_answers_have_another_check():
    assert different_prompts(dict.fromkeys("abc", probe("", "a", 1.0).reply)) == []


@pytest.mark.parametrize(
    ("texts", "holds", "decisive"),
    [
        ("abca", True, False),
        ("aaaa", False, True),
        ("aaba", False, False),
        ("abcd", False, False),
    ],
)
def test_each_request_of_a_batch_keeps_its_seed(texts, holds, decisive):
    found = together_check(texts)
    assert (found.holds, found.decisive) == (holds, decisive)


def test_more_requests_than_open_files_are_refused():
    with pytest.raises(UsageError, match="ulimit -n"):
        allow_open_files(2**40)
