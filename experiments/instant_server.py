"""A server for measuring clients: every request gets the same prepared reply, at once.

    python experiments/instant_server.py [--port N] [--tokens 8]

The server does almost no work, so that the time is the client's. It streams a few tokens, with
log-probabilities and token ids if the request asks for them and `--bare` is not given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "
MODELS = {"object": "list", "data": [{"id": "instant", "object": "model", "max_model_len": 65536}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--bare", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.port, Replies(options.tokens, bare=options.bare)))


async def serve(port: int, replies: Replies) -> None:
    """Print the port once it is open, then serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Instant(replies), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Replies:
    """The prepared replies, each a complete HTTP response."""

    def __init__(self, tokens: int, *, bare: bool):
        self.models = _plain(json.dumps(MODELS).encode())
        self.missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        self.health = _plain(b"{}")
        self.chat = _stream(_chunks(tokens, full=False))
        self.chat_full = self.chat if bare else _stream(_chunks(tokens, full=True))

    def to(self, head: bytes, body: bytes) -> bytes:
        """The reply to a request with these header bytes and this body."""
        if head.startswith(b"POST"):
            return self.chat_full if b'"logprobs":true' in body else self.chat
        if b"/models" in head[:64]:
            return self.models
        return self.missing if b"/metrics" in head[:64] else self.health


class Instant(asyncio.Protocol):
    """One connection; it stays open for further requests."""

    def __init__(self, replies: Replies):
        self._reply: Callable[[bytes, bytes], bytes] = replies.to
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            length = _content_length(head)
            if len(self._data) < end + 4 + length:
                return
            body = self._data[end + 4 : end + 4 + length]
            self._data = self._data[end + 4 + length :]
            self._transport.write(self._reply(head, body))


def _content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.find(b"content-length:")
    return int(lower[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0


def _plain(body: bytes) -> bytes:
    return HEAD + b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _stream(events: list[dict[str, Any]]) -> bytes:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    body += b"data: [DONE]\n\n"
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + framed


def _chunks(tokens: int, *, full: bool) -> list[dict[str, Any]]:
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "instant"}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    choices = [_choice(index, last=index == tokens - 1, full=full) for index in range(tokens)]
    events = [{**head, "choices": [choice]} for choice in (first, *choices)]
    return [*events, {**head, "choices": [], "usage": usage}]


def _choice(index: int, *, last: bool, full: bool) -> dict[str, Any]:
    text = f" word{index}"
    reason = "length" if last else None
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": reason}
    if full:
        top = [_logprob(text, -0.1), _logprob(" other", -3.0)]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        choice["token_ids"] = [100 + index]
    return choice


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


if __name__ == "__main__":
    main()
