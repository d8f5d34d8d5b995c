"""Bodies are read by their first bytes; words that are no reply are shown."""

from __future__ import annotations

import json

import pytest

from detcheck.engines.openai.body import LONGEST_WORDS, Body
from detcheck.engines.openai.failures import ABORTED, MALFORMED, TRUNCATED, Failure
from detcheck.engines.openai.reply import Reply

WHOLE = {"object": "chat.completion", "choices": [{"message": {"content": "one two"}}]}
CHUNKS = [{"choices": [{"delta": {"content": text}}]} for text in ("one ", "two")]
STREAM = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in CHUNKS)
DONE = b"data: [DONE]\n\n"


def read(*pieces: bytes) -> Reply:
    reply = Reply(8, ("sk-secret",))
    body = Body(reply, ("sk-secret",))
    for piece in pieces:
        body.feed(piece)
    if not reply.done:
        body.close()
    return reply


@pytest.mark.parametrize("start", [b"", b"\n\r\n", b"\xef\xbb\xbf", b": ping\n\n", b"event: x\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_stream_of_events(start: bytes, size: int) -> None:
    data = start + STREAM + DONE
    reply = read(*(data[at : at + size] for at in range(0, len(data), size)))
    assert reply.completion().text == "one two"


@pytest.mark.parametrize("start", [b"", b" \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_a_whole_reply(start: bytes, indent: int | None) -> None:
    data = start + json.dumps(WHOLE, indent=indent).encode()
    assert read(data[:5], data[5:]).completion().text == "one two"


def test_one_object_a_line() -> None:
    ended = [*CHUNKS, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    lines = b"\n".join(json.dumps(chunk).encode() for chunk in ended)
    assert read(lines).completion().text == "one two"
    assert read(lines + b"\r\n[DONE]\r\n").completion().text == "one two"
    with pytest.raises(Failure) as caught:
        read(b"\n".join(json.dumps(chunk).encode() for chunk in CHUNKS)).completion()
    assert caught.value.kind == TRUNCATED


def test_single_chunk_as_an_object_is_no_whole_reply() -> None:
    chunk = {"object": "chat.completion.chunk", **CHUNKS[0]}
    with pytest.raises(Failure) as caught:
        read(json.dumps(chunk).encode()).completion()
    assert caught.value.kind == TRUNCATED


@pytest.mark.parametrize("end", [b"", b"data: ", b'data: {"choices": [{"del', b"data: {}"])
def test_stream_that_is_cut_is_truncated(end: bytes) -> None:
    with pytest.raises(Failure) as caught:
        read(STREAM + end).completion()
    assert caught.value.kind == TRUNCATED


@pytest.mark.parametrize("done", [b"[DONE]", b'"[DONE]"', b"[done]", b" [DONE] "])
def test_end_of_a_stream(done: bytes) -> None:
    assert read(STREAM + b"data:" + done + b"\n\n").completion().text == "one two"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"object":"error","message":"Model is loading"}', ABORTED, "Model is loading"),
        (b'{"error": {"message": "CUDA error"}}', ABORTED, "CUDA error"),
        (b'{"error": "busy"}', ABORTED, "busy"),
        (b'{"error": {"code": 1302}}', ABORTED, '{"code": 1302}'),
        (b'{"detail": "Not now"}', ABORTED, "Not now"),
        (b'{"code": 500, "msg": "Not now"}', ABORTED, "Not now"),
        (b'{"choices": null, "message": "Not now"}', ABORTED, "Not now"),
        (b'{"choices": [{"error": {"message": "Not now"}, "delta": {}}]}', ABORTED, "Not now"),
        (b'data: {"object":"error","message":"Not now"}\n\n', ABORTED, "Not now"),
        (b"event: error\ndata: Not now\n\n", ABORTED, "Not now"),
        (b'event: server_error\ndata: {"code": 7, "why": "Not now"}\n\n', ABORTED, "Not now"),
        (b"event: error\n\n", ABORTED, "no reason"),
        (b'{"success": false, "reason": "Not now"}', ABORTED, "Not now"),
        (b'{"status": "failed", "reason": "Not now"}', ABORTED, "Not now"),
        (b'{"error": true, "message": "Not now"}', ABORTED, "Not now"),
        (b'{"base_resp": {"status_code": 7, "status_msg": "Not now"}}', ABORTED, "Not now"),
        (b'{"choices": [{"delta": {"error": {"message": "Not now"}}}]}', ABORTED, "Not now"),
        (b'{"choices": [{"message": {"content": "a", "error": "Not now"}}]}', ABORTED, "Not now"),
        (b'{"message": {"content": "Not here"}, "done": true}', MALFORMED, "Not here"),
        (b"upstream connect error", MALFORMED, "plain words: upstream connect error"),
        (b"<html><title>Sign in</title>", MALFORMED, "web page: Sign in"),
        (b"<html>", MALFORMED, "a web page"),
        (b"[]", MALFORMED, "not a JSON object: []"),
        (b'{"choices": [{"index"', MALFORMED, 'not JSON: {"choices"'),
        (b"x" * (LONGEST_WORDS + 1), MALFORMED, "longer than"),
        (b"bad key sk-secret", MALFORMED, "bad key [redacted]"),
        (b'{"error": "bad key sk-secret"}', ABORTED, "bad key [redacted]"),
        (b"data: bad key sk-secret\n\n", MALFORMED, "bad key [redacted]"),
    ],
)
def test_servers_own_words_are_shown(body: bytes, kind: str, words: str) -> None:
    with pytest.raises(Failure) as caught:
        read(body).completion()
    assert caught.value.kind == kind
    assert words in caught.value.phrase


@pytest.mark.parametrize(
    "error",
    [
        b'event: error\ndata: {"code": 7}\n\n',
        b"event: error\ndata: dead\n\n",
        b'data: {"code": 500, "reason": "dead"}\n\n',
        b'data: {"status": "error"}\n\n',
        b'data: {"success": false}\n\n',
        b'data: {"choices": [], "finish_reason": "abort"}\n\n',
    ],
)
def test_error_in_the_middle_of_a_stream_that_ends_in_order_is_no_answer(error: bytes) -> None:
    assert read(STREAM + DONE).completion().text == "one two"
    with pytest.raises(Failure) as caught:
        read(STREAM + error + DONE).completion()
    assert caught.value.kind == ABORTED


@pytest.mark.parametrize(
    "nothing",
    [
        b"data: null\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        b'data: {"choices": [null]}\n\n',
        b'data: {"type": "ping"}\n\n',
        b"event: ping\ndata\n\n",
        b'data: {"base_resp": {"status_code": 0, "status_msg": "success"}}\n\n',
        b'data: {"code": 200, "status": "in_progress", "success": true}\n\n',
        b'data: {"code": 20000}\n\n',
    ],
)
def test_event_that_says_nothing_is_left_out(nothing: bytes) -> None:
    assert read(nothing + STREAM + nothing + DONE).completion().text == "one two"


@pytest.mark.parametrize("error", ["null", '""', "{}", "false"])
def test_error_field_without_content_is_no_error(error: str) -> None:
    chunk = json.dumps(CHUNKS[0])[:-1] + f', "error": {error}}}'
    assert read(b"data: " + chunk.encode() + b"\n\n" + DONE).completion().text == "one "
