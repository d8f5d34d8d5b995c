"""Every planted fault of a server, and how detcheck names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servers.faults import Faults
from servers.replies import BODIES

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
USAGE, NOT_MEASURED = 2, 3
PROMPT = "Tell me about Richard Feynman"
COMMAND = ("-p", PROMPT, "-b", "1,8", "-n", "27", "--max-new-tokens", "12")
TIMEOUT = ("--timeout", "5")
IMPATIENT = ("--timeout", "1")
WARM = ("--temperature", "0.8")


def server(**faults: Any) -> Faults:
    """A server quick enough for tests and slow enough for its streams to overlap."""
    return Faults(**{"quiet_s": 0.01, "step_s": 0.002, **faults})


def some(**faults: Any) -> Faults:
    """Faults of transport that hit a third of the experiment's requests, and none before it."""
    return server(**{"only": PROMPT, "rate": 0.3, **faults})


CLEAN = server()


@dataclass(frozen=True)
class Row:
    """One fault, and what detcheck must say of it."""

    name: str
    faults: Faults
    verdict: str
    says: str
    """Regular expression, found in what `run` and `gate` print, or in the report."""
    twin: Faults = CLEAN
    options: tuple[str, ...] = TIMEOUT


flip = {"flip_at": 5, "flip_above": 4}

WRONG_ANSWERS = (
    Row("a tie under load", server(**flip), FAIL, r"at position 5, .*\(tie\)"),
    Row(
        "a confident difference under load",
        server(**flip, flip_gap=3.0),
        FAIL,
        r"at position 5, .*\(confident\)",
        twin=server(flip_at=5, flip_above=8, flip_gap=3.0),
    ),
    Row("a third of the answers", server(**flip, flip_rate=0.3), FAIL, "2 distinct answers"),
    Row(
        "a difference where the prefix is cached",
        server(flip_at=5, flip_on_cached_prefix=True),
        FAIL,
        "The first answer, computed without the prefix cache, differs from all",
    ),
    Row(
        "replicas that differ",
        server(system_fingerprints=("fp_a", "fp_b"), replica_differs=True),
        FAIL,
        r"2 different ones \(fp_a, fp_b\): replicas",
        twin=server(system_fingerprints=("fp_a",)),
    ),
    Row(
        "replicas that agree",
        server(system_fingerprints=("fp_a", "fp_b")),
        PASS,
        r"2 different ones \(fp_a, fp_b\): replicas",
    ),
    Row(
        "log-probabilities that move, and no token",
        server(noise=0.01),
        PASS,
        "log-probabilities of 24 completions differ in some bit",
    ),
    Row(
        "a difference that nothing explains",
        server(**flip, gives_logprobs=False),
        FAIL,
        "no log-probabilities to tell why",
    ),
    Row(
        "a difference in text alone",
        server(**flip, gives_token_ids=False),
        FAIL,
        "fingerprints are of text",
        twin=server(gives_token_ids=False),
    ),
)

PARAMETERS = (
    Row(
        "samples at temperature 0",
        server(forced_temperature=1.0),
        INCONCLUSIVE,
        "temperature 0.*: another seed gives another answer",
    ),
    Row(
        "samples at temperature 0, without the seed",
        server(forced_temperature=1.0, ignores_seed=True),
        FAIL,
        "distinct answers in 27",
    ),
    Row(
        "ignores the seed when sampling",
        server(ignores_seed=True),
        FAIL,
        "the same seed gave other samples",
        options=(*TIMEOUT, *WARM),
    ),
    Row(
        "ignores the seed where none is needed",
        server(ignores_seed=True),
        PASS,
        "the same seed gave other samples",
    ),
    Row(
        "greedy whatever the temperature",
        server(forced_temperature=0.0),
        INCONCLUSIVE,
        "temperature or seed may be ignored",
        options=(*TIMEOUT, *WARM),
    ),
    Row(
        "ignores max_tokens",
        server(ignores_max_tokens=True),
        PASS,
        "replies of up to 41 tokens, of 12 that were allowed",
    ),
    Row("no log-probabilities", server(gives_logprobs=False), PASS, "no runners-up came"),
    Row("no token ids", server(gives_token_ids=False), PASS, "fingerprints are of text"),
    Row(
        "refuses fields that it does not know",
        server(refuses=("return_token_ids", "logprobs", "stream_options")),
        PASS,
        "the server refuses logprobs, return_token_ids, stream_options, top_logprobs",
    ),
)

NO_LOAD = (
    Row("answers from a cache", server(cache=True), INCONCLUSIVE, "they come from a cache"),
    Row(
        "answers from a cache, without counters",
        server(cache=True, metrics=False),
        INCONCLUSIVE,
        "they come from a cache",
        twin=server(metrics=False),
    ),
    Row(
        "one request at a time",
        server(max_num_seqs=1),
        INCONCLUSIVE,
        "this server answered one request at a time: no batch was ever formed",
    ),
    Row(
        "one request at a time, without counters",
        server(max_num_seqs=1, metrics=False),
        INCONCLUSIVE,
        "this server answered one request at a time: no batch was ever formed",
        twin=server(metrics=False),
    ),
    Row(
        "half of the batch",
        server(max_num_seqs=4),
        INCONCLUSIVE,
        "batches of up to 4 where 8 were asked",
    ),
    Row(
        "replies in one piece, without counters",
        server(buffered=True, metrics=False),
        INCONCLUSIVE,
        "neither counters of the server nor its streams show any",
        twin=server(buffered=True),
    ),
    Row(
        "differs, and one at a time elsewhere",
        server(flip_at=5, flip_above=0, flip_rate=0.3, max_num_seqs=1),
        FAIL,
        "2 distinct answers",
    ),
    Row(
        "counters that claim a batch, one request at a time",
        server(max_num_seqs=1, metrics_scale=8.0),
        INCONCLUSIVE,
        "one request at a time",
        twin=server(metrics_scale=8.0),
    ),
    Row(
        "counters that claim a batch, one at a time, replies in one piece",
        server(max_num_seqs=1, metrics_scale=8.0, buffered=True),
        INCONCLUSIVE,
        "batches of up to 1 where 8 were asked",
    ),
    Row("counters that stand still", server(metrics_frozen=True), PASS, "by overlapping streams"),
    Row("counters that start anew", server(metrics_reset=True), PASS, "batches of up to 8 of 8"),
    Row("no Prometheus text", server(metrics_garbage=True), PASS, "by overlapping streams"),
    Row(
        "some counters missing",
        server(metrics_missing=("vllm:iteration_tokens_total", "vllm:num_preemptions_total")),
        PASS,
        "by the server's own counters",
    ),
)

FAILURES = (
    Row("resets before a reply", some(drop="before"), INCONCLUSIVE, r"failed: \d+ reset"),
    Row("resets after a token", some(drop="first"), INCONCLUSIVE, r"failed: \d+ reset"),
    Row("resets in the middle", some(drop="middle"), INCONCLUSIVE, r"failed: \d+ reset"),
    *(
        Row(
            f"silence: {when}",
            some(stall=when),
            INCONCLUSIVE,
            r"failed: \d+ timeout",
            options=("--timeout", "2"),  # the checks take a second on a busy machine
        )
        for when in ("before", "first", "middle")
    ),
    Row("ends in the middle", some(truncate=True), INCONCLUSIVE, r"failed: \d+ truncated"),
    *(
        Row(f"status {status}", some(status=status), INCONCLUSIVE, r"failed: \d+ http 4xx")
        for status in (400, 401, 403, 404)
    ),
    Row("status 500", some(status=500), INCONCLUSIVE, r"failed: \d+ http 5xx"),
    *(
        Row(
            f"status {status} for ever",
            some(status=status, rate=1.0, retry_after="0.01"),
            INCONCLUSIVE,
            f"0 of 27 completions came back .*: 27 {kind}",
        )
        for status, kind in ((429, "http 429"), (503, "http 5xx"))
    ),
    *(
        Row(
            f"status {status} twice",
            some(status=status, rate=1.0, failures=2, retry_after="0.05"),
            PASS,
            "2 requests sent again",
        )
        for status in (429, 503)
    ),
    *(
        Row(f"flood: {flood}", some(flood=flood), INCONCLUSIVE, r"failed: \d+ malformed")
        for flood in ("tokens", "line", "header")
    ),
    *(
        Row(f"bytes: {encoding}", some(encoding=encoding), INCONCLUSIVE, r"failed: \d+ malformed")
        for encoding in ("latin-1", "utf-16", "invalid")
    ),
    *(
        Row(f"body: {body}", some(body=body), INCONCLUSIVE, r"failed: \d+ (malformed|truncated)")
        for body in BODIES
        if body not in ("surrogate", "error", "object-error")
    ),
    *(
        Row(f"stream: {body}", some(body=body), INCONCLUSIVE, r"failed: \d+ aborted")
        for body in ("error", "object-error")
    ),
    Row("half a surrogate pair", some(body="surrogate"), FAIL, "2 distinct answers"),
    Row(
        "a wrong content type",
        server(content_type="text/plain"),
        PASS,
        "0 of 24 comparisons",
    ),
)

JUDGED = (*WRONG_ANSWERS, *PARAMETERS, *NO_LOAD, *FAILURES)


@dataclass(frozen=True)
class Refused:
    """A server that cannot be asked, and the one sentence about it."""

    name: str
    faults: Faults
    code: int
    says: str
    options: tuple[str, ...] = IMPATIENT


REFUSED = (
    Refused("no API", server(not_an_api=True), USAGE, "not as an OpenAI-compatible API"),
    Refused("HTML", server(body="html"), USAGE, "not as an OpenAI-compatible API"),
    Refused("malformed JSON", server(body="malformed"), USAGE, "reply is not JSON: "),
    Refused("wrong types", server(body="wrong-types"), USAGE, "token ids are not whole numbers"),
    Refused("another encoding", server(encoding="utf-16"), USAGE, "not JSON in UTF-8"),
    Refused("a flood", server(flood="line"), USAGE, "longer than the answer to the request can be"),
    Refused("no key", server(api_key="s3cret-key"), USAGE, "asks for an API key .*--api-key-env"),
    Refused(
        "a key that is refused",
        server(key_refused=403),
        USAGE,
        r"refuses the key in PLANTED_KEY \(403\)",
        options=(*IMPATIENT, "--api-key-env", "PLANTED_KEY"),
    ),
    Refused("another model", server(served=("a", "b")), USAGE, "it serves a, b"),
    Refused("a short context", server(max_model_len=12), USAGE, "context of tiny .* 12 tokens"),
    Refused("status 500", server(status=500), NOT_MEASURED, "http 5xx"),
    Refused(
        "status 429",
        server(status=429, retry_after="0.01"),
        NOT_MEASURED,
        "http 429.* answered 429",
    ),
    Refused("resets", server(drop="before"), NOT_MEASURED, "the connection was reset"),
    Refused("silence", server(stall="before"), NOT_MEASURED, "did not answer it within 1 s"),
)
