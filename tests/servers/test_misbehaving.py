"""The misbehaving server itself: correct without faults, and each fault does what it says."""

from __future__ import annotations

import json
import math

import aiohttp
import pytest

from .faults import METRICS, Faults, parse
from .replies import BODIES

CHAT_PATH = "/chat/completions"
PATHS = ("/completions", CHAT_PATH)


def texts(answers):
    return {answer.text for answer in answers}


# Without faults.


@pytest.mark.parametrize("path", PATHS)
def test_a_greedy_answer_depends_on_the_prompt_only(client, path):
    server = client()
    alone, together = server.ask(path=path), server.ask(16, path=path, seed=3)
    assert len(texts(alone + together)) == 1
    assert server.served.server.engine.counters.largest_batch == 16
    other = {"prompt": "Goodbye"} if path != CHAT_PATH else {"messages": [{"role": "system"}]}
    assert server.one(path=path, **other).text != alone[0].text


@pytest.mark.parametrize("path", PATHS)
def test_stream_and_whole_reply_are_equal(client, path):
    server = client()
    asked = {"path": path, "return_token_ids": True, "logprobs": 1}
    whole = server.one(**asked).json()
    answer = server.one(**asked, stream=True, stream_options={"include_usage": True})
    assert answer.body.endswith(b"data: [DONE]\n\n")
    choices = [event["choices"][0] for event in answer.events if event["choices"]]
    said = "".join(c["text"] if "text" in c else c["delta"]["content"] for c in choices)
    choice = whole["choices"][0]
    assert said == (choice["text"] if "text" in choice else choice["message"]["content"])
    assert [i for c in choices for i in c.get("token_ids", [])] == choice["token_ids"]
    assert choices[-1]["finish_reason"] == choice["finish_reason"] == "length"
    assert answer.events[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == len(choice["token_ids"]) == 12


def test_sampling_is_by_seed(client):
    server = client()
    sampled = [server.one(temperature=1, seed=seed, max_tokens=30).text for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert len(texts(server.ask(4, temperature=1, max_tokens=30))) == 4


def test_an_answer_ends_by_itself(client):
    whole = client(answer_tokens=5).one(max_tokens=100, return_token_ids=True).json()
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert len(whole["choices"][0]["token_ids"]) == 5


def test_log_probabilities_rank_the_chosen_token_first(client):
    content = client().one(path=CHAT_PATH, logprobs=True, top_logprobs=2).json()["choices"][0]
    for entry in content["logprobs"]["content"]:
        best, second = entry["top_logprobs"]
        assert best["token"] == entry["token"]
        assert best["logprob"] > second["logprob"]
        assert bytes(entry["bytes"]).decode() == entry["token"]


def test_the_counters_are_true(client):
    server = client()
    server.ask(8, max_tokens=10)
    assert server.metric("vllm:generation_tokens_total") == 80
    assert server.metric("vllm:iteration_tokens_total_count") == 10
    prompt_tokens = 8 * 3
    assert server.metric("vllm:iteration_tokens_total_sum") == 80 + prompt_tokens
    assert server.metric("vllm:num_requests_running") == 0
    assert server.metric("vllm:prefix_cache_queries_total") == prompt_tokens
    body = server.get("/metrics")
    assert all(name in body for name in METRICS)


def test_a_prefix_seen_before_hits_the_cache(client):
    server = client()
    prompt = "x" * 100
    server.one(prompt=prompt)
    assert server.metric("vllm:prefix_cache_hits_total") == 0
    server.one(prompt=prompt)
    assert server.metric("vllm:prefix_cache_hits_total") == 48


def test_models_health_and_refusals(client):
    server = client(served=("a", "b"), max_model_len=64)
    assert [m["id"] for m in json.loads(server.get("/v1/models"))["data"]] == ["a", "b"]
    assert server.get("/health") == ""
    unknown = server.one(model="c")
    assert unknown.status == 404
    assert "`c` does not exist" in unknown.json()["error"]["message"]
    long = server.one(model="a", prompt="x" * 200)
    assert long.status == 400
    assert "maximum context length is 64 tokens" in long.json()["error"]["message"]


# Wrong answers.


def test_a_difference_is_planted_above_a_concurrency_at_a_token(client):
    server = client(flip_at=5, flip_above=4)
    asked = {"return_token_ids": True, "max_tokens": 12}
    few = [a.json()["choices"][0]["token_ids"] for a in server.ask(4, **asked)]
    many = [a.json()["choices"][0]["token_ids"] for a in server.ask(5, **asked)]
    assert len({tuple(ids) for ids in few}) == len({tuple(ids) for ids in many}) == 1
    assert few[0][:5] == many[0][:5]
    assert few[0][5] != many[0][5]


@pytest.mark.parametrize("gap", [0.0, 3.0])
def test_the_gap_at_the_planted_token_is_as_asked(client, gap):
    server = client(flip_at=5, flip_gap=gap)
    for answer in server.ask(1, logprobs=2) + server.ask(2, logprobs=2):
        first, second = answer.json()["choices"][0]["logprobs"]["top_logprobs"][5].values()
        assert first - second == pytest.approx(gap)


def test_a_share_of_the_requests_differs(client):
    server = client(flip_at=2, flip_rate=0.25, flip_above=0)
    answers = server.ask(200, max_tokens=4)
    usual = client().one(max_tokens=4).text
    different = sum(answer.text != usual for answer in answers)
    assert 20 < different < 80
    assert server.served.server.engine.counters.flipped == different


def test_a_cached_prefix_differs(client):
    server = client(flip_at=2, flip_on_cached_prefix=True)
    first, second, third = (server.one().text for _ in range(3))
    assert first != second == third


def test_replicas_differ(client):
    server = client(system_fingerprints=("a", "b"), replica_differs=True)
    replies = [server.one().json() for _ in range(4)]
    assert [r["system_fingerprint"] for r in replies] == ["a", "b", "a", "b"]
    assert len({r["choices"][0]["text"] for r in replies}) == 2


def test_noise_moves_log_probabilities_and_no_token(client):
    server = client(noise=0.01)
    one, two = (server.ask(n, logprobs=2)[0].json()["choices"][0] for n in (1, 2))
    assert one["text"] == two["text"]
    assert one["logprobs"]["token_logprobs"] != two["logprobs"]["token_logprobs"]


# Parameters that are not honoured.


def test_parameters_are_ignored(client):
    assert len(texts(client(ignores_seed=True).ask(3, temperature=1, seed=1))) == 3
    assert len(texts(client(forced_temperature=0.0).ask(3, temperature=1))) == 1
    assert len(texts(client(forced_temperature=1.0).ask(3))) == 3
    long = client(ignores_max_tokens=True).one(max_tokens=2).json()
    assert long["usage"]["completion_tokens"] == 40
    bare = client(gives_logprobs=False, gives_token_ids=False, gives_usage=False)
    reply = bare.one(logprobs=2, return_token_ids=True).json()
    assert reply["choices"][0]["logprobs"] is None
    assert "token_ids" not in reply["choices"][0]
    assert "usage" not in reply
    strict = client(refuses=("return_token_ids",))
    assert strict.one(return_token_ids=True).status == 400
    assert strict.one().status == 200


def test_a_cache_answers_with_the_same_id_and_runs_no_step(client):
    server = client(cache=True)
    first, second = server.one(), server.one()
    assert first.body == second.body
    assert server.metric("vllm:generation_tokens_total") == 12
    assert client().one(stream=True).body != server.one(stream=True).body
    assert server.one(stream=True).body == server.one(stream=True).body


def test_server_with_one_sequence_never_batches(client):
    server = client(max_num_seqs=1)
    server.ask(6, max_tokens=10)
    assert server.metric("vllm:iteration_tokens_total_count") == 60
    assert server.served.server.engine.counters.largest_batch == 1


def test_preemption_is_counted(client):
    server = client(preempt_every=3)
    assert len(texts(server.ask(4))) == 1
    assert server.metric("vllm:num_preemptions_total") > 0
    assert client().metric("vllm:num_preemptions_total") == 0


# Transport.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("drop", ["before", "first", "middle"])
def test_the_connection_drops(client, drop, stream):
    answer = client(drop=drop).one(stream=stream)
    assert isinstance(answer.error, aiohttp.ClientError | ConnectionError)
    assert (answer.body.count(b'"text"') > 0) == (stream and drop != "before")


@pytest.mark.parametrize("stall", ["before", "first", "middle"])
def test_server_stops_sending(client, stall):
    answer = client(stall=stall).one(stream=True, timeout=0.5)
    assert isinstance(answer.error, TimeoutError)
    assert (answer.body.count(b'"text"') > 0) == (stall != "before")


def test_a_truncated_stream_ends_as_if_complete(client):
    answer = client(truncate=True).one(stream=True)
    assert answer.error is None
    assert b"[DONE]" not in answer.body
    assert all(event["choices"][0]["finish_reason"] is None for event in answer.events)
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        client(truncate=True).one().json()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_share_of_the_requests_fails(client, status):
    answers = client(status=status, rate=0.5, retry_after="1").ask(40)
    failed = [answer for answer in answers if answer.status == status]
    assert 5 < len(failed) < 35
    assert all(answer.headers["Retry-After"] == "1" for answer in failed)
    assert {answer.status for answer in answers} == {200, status}


def test_the_first_requests_fail(client):
    server = client(status=503, failures=2)
    assert [server.one().status for _ in range(4)] == [503, 503, 200, 200]


def test_faults_hit_only_some_prompts(client):
    server = client(status=500, only="Hello", failures=1)
    asked = ("Goodbye", "Hello", "Hello")
    assert [server.one(prompt=prompt).status for prompt in asked] == [200, 500, 200]


@pytest.mark.sweep
@pytest.mark.parametrize("flood", ["tokens", "line"])
def test_floods_do_not_end(client, flood):
    assert isinstance(client(flood=flood).one(stream=True).error, OverflowError)


def test_a_flood_of_headers(client):
    assert client(flood="header").one().error is not None


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "invalid"])
def test_other_encodings(client, encoding):
    server = client(encoding=encoding)
    bodies = [server.one(prompt=str(i), max_tokens=30).body for i in range(3)]
    with pytest.raises(UnicodeDecodeError):
        [body.decode() for body in bodies]


@pytest.mark.parametrize("body", BODIES)
def test_bodies_that_are_no_reply(client, body):
    whole = client(body=body).one()
    assert (whole.status, whole.body) == (200, BODIES[body][0])


def test_a_wrong_content_type(client):
    answer = client(content_type="text/plain").one()
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.text


def test_a_redirect_to_another_host(client):
    other = client()
    server = client(redirect_to=other.served.root)
    answer = server.one(headers={"Authorization": "Bearer secret"})
    assert answer.status == 307
    assert answer.headers["Location"] == other.served.url + "/completions"
    assert server.served.server.seen[0][1]["Authorization"] == "Bearer secret"
    assert other.served.server.seen == []


def test_a_web_server_that_is_no_api(client):
    answer = client(not_an_api=True).one()
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/html")


def test_a_buffered_stream_comes_in_one_piece(client):
    buffered = client(buffered=True).one(stream=True)
    usual = client().one(stream=True)
    assert len(buffered.events) == len(usual.events)
    assert buffered.body.endswith(b"[DONE]\n\n")


def test_a_key_is_asked_for(client):
    server = client(api_key="sesame")
    statuses = [
        server.one(headers=headers).status
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer sesame"})
    ]
    assert statuses == [401, 401, 200]
    assert client(key_refused=403).one(headers={"Authorization": "Bearer x"}).status == 403


# Counters.


def test_counters_can_be_wrong_or_missing(client):
    assert "vllm" not in client(metrics=False).get("/metrics")
    assert "running" not in client(metrics_missing=("vllm:num_requests_running",)).get("/metrics")
    for faults, count in (({"metrics_scale": 2.0}, 24), ({"metrics_frozen": True}, 0)):
        server = client(**faults)
        server.one()
        assert server.metric("vllm:iteration_tokens_total_count") == count
    server = client(metrics_reset=True)
    server.one()
    counts = [server.metric("vllm:iteration_tokens_total_count") for _ in range(2)]
    assert counts == [12, 0]
    assert math.isnan(client(metrics_garbage=True).metric("vllm:num_requests_running"))


def test_other_clients_are_in_every_batch(client):
    server = client(others=3, flip_at=2, flip_above=3)
    assert server.one().text != client().one().text
    assert server.metric("vllm:num_requests_running") == 3


# By hand.


def test_faults_are_read_from_the_command_line():
    assert parse([]) == Faults()
    assert parse(["cache", "flip_at=5", "drop=first"]) == Faults(
        cache=True, flip_at=5, drop="first"
    )
    assert parse(['served=["a"]']) == Faults(served=("a",))
    with pytest.raises(ValueError, match="no fault 'nonsense'"):
        parse(["nonsense=1"])
