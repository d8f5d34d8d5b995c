"""A fault is planted in a server; detcheck, through its command line, must say so.

Each row of `JUDGED` holds a fault, the verdict of the gate, and what must be said; each has its
clean twin, the same command against the same server without the fault, which must pass. Rows of
`REFUSED` are servers that cannot be asked at all: one sentence, exit 2 or 3, nothing written.
Nothing here waits for longer than the client's own `--timeout`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import unescape
from typing import Any

import pytest
from servers.faults import Faults
from servers.replies import BODIES
from servers.running import Served, serve

from detcheck.cli.app import run_program

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
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
            options=IMPATIENT,
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


def named(rows: tuple[Any, ...]) -> Any:
    """Parametrise by rows under their names."""
    return pytest.mark.parametrize("row", rows, ids=[row.name.replace(" ", "-") for row in rows])


def twins() -> tuple[Row, ...]:
    """The clean twins, each once."""
    seen = {(row.twin, row.options): row for row in JUDGED}
    return tuple(
        replace(
            row,
            name=f"without {row.name}",
            faults=twin,
            verdict=PASS,
            says="0 of 24 comparisons",
        )
        for (twin, _), row in seen.items()
    )


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Returns a function: a server and options -> exit code and output of `detcheck run`."""
    monkeypatch.setenv("PLANTED_KEY", "s3cret-key")

    def ask(served: Served, *options: str) -> tuple[int, str]:
        command = ("run", "tiny", "--endpoint", served.url, *COMMAND, *options)
        code = run_program([*command, "--out", str(tmp_path / "run")])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return ask


@pytest.fixture
def judge(ask, capsys, tmp_path) -> Callable[[Faults, tuple[str, ...]], tuple[int, str]]:
    """Returns a function: faults and options -> exit code of the gate, and all that was said."""

    def judge(faults: Faults, options: tuple[str, ...]) -> tuple[int, str]:
        with serve(faults) as served:
            code, said = ask(served, *options)
        assert code == 0, said
        run = str(tmp_path / "run")
        code = run_program(["gate", run])
        assert run_program(["report", run, "--format", "md"]) == 0
        report = unescape((tmp_path / "run" / "report.md").read_text(encoding="utf-8"))
        return code, said + capsys.readouterr().out + report

    return judge


@named(JUDGED)
def test_the_fault_is_named(judge, row):
    code, said = judge(row.faults, row.options)
    assert code == EXIT_CODES[row.verdict], said
    assert re.search(row.says, said), said


@named(twins())
def test_its_clean_twin_passes(judge, row):
    code, said = judge(row.faults, row.options)
    assert code == EXIT_CODES[PASS], said
    assert re.search(row.says, said), said


@named(REFUSED)
def test_a_server_that_cannot_be_asked(ask, tmp_path, row):
    with serve(row.faults) as served:
        code, said = ask(served, *row.options)
    assert code == row.code, said
    assert re.search(row.says, said), said
    assert said.count("\n") == 1
    assert "s3cret-key" not in said
    assert not (tmp_path / "run").exists()


def test_nothing_that_may_have_been_generated_is_sent_again(ask):
    with serve(some(status=500, rate=1.0)) as served:
        ask(served, *TIMEOUT)
        assert served.server.num_liable == 27


def test_a_redirect_is_not_followed_and_takes_no_key_along(ask):
    with serve(CLEAN) as other, serve(server(redirect_to=other.root)) as served:
        code, said = ask(served, *TIMEOUT, "--api-key-env", "PLANTED_KEY")
        assert code == USAGE
        assert "redirects to http://127.0.0.1" in said
        assert other.server.seen == []


def test_a_key_goes_to_the_api_and_nowhere_else(ask, tmp_path):
    with serve(server(api_key="s3cret-key")) as served:
        code, said = ask(served, *TIMEOUT, "--api-key-env", "PLANTED_KEY")
    assert code == 0, said
    assert {headers.get("Authorization") for _, headers in served.server.seen} == {
        "Bearer s3cret-key"
    }
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written
    for text in (said, *(path.read_text(encoding="utf-8") for path in written)):
        assert "s3cret-key" not in text


def test_a_batch_is_of_the_size_that_was_asked_for(ask):
    with serve(CLEAN) as served:
        ask(served, *TIMEOUT)
        assert served.server.engine.counters.largest_batch == 8
