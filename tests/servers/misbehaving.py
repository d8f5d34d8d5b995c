"""An OpenAI-compatible server with planted faults, for tests and by hand.

python -m tests.servers.misbehaving --port 8000 --fault flip_at=5 --fault flip_rate=0.1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from aiohttp import web

from .faults import Faults, parse
from .metrics import metrics_text
from .replies import BODIES, JSON, SSE, Asked, RefusedError, Reply, encode, error_body, read_request
from .script import piece
from .step_engine import Counters, Generation, StepEngine, Token

TOKENS_BEFORE = {"first": 1, "middle": 4}
"""Tokens sent before a connection drops or falls silent."""


class MisbehavingServer:
    """The handlers of the server, and its counts of requests."""

    def __init__(self, faults: Faults):
        self.faults = faults
        self.engine = StepEngine(faults)
        self.seen: list[tuple[str, dict[str, str]]] = []
        """(path, headers) of every request, in order."""
        self.num_generating = 0
        """Requests that asked for tokens."""
        self.num_liable = 0
        """Those of them that faults may hit, by `Faults.only`."""
        self._cached: dict[str, bytes] = {}

    def app(self) -> web.Application:
        """The application, its engine running as long as it is served."""
        app = web.Application(client_max_size=2**26, middlewares=[self._gate])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.cleanup_ctx.append(self._running_engine)
        return app

    async def _running_engine(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self.engine.run())
        yield
        task.cancel()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Faults that are decided before a request is parsed."""
        self.seen.append((request.path, dict(request.headers)))
        faults = self.faults
        if faults.not_an_api:
            body = b"<!doctype html><title>404</title><h1>Not found</h1>"
            return web.Response(status=404, body=body, content_type="text/html")
        if request.path.startswith("/v1/"):
            if faults.redirect_to is not None:
                target = faults.redirect_to.rstrip("/") + request.path
                return web.Response(status=307, headers={"Location": target})
            refused = self._refused(request.headers.get("Authorization"))
            if refused is not None:
                return refused
        try:
            return await handler(request)
        except RefusedError as error:
            return _json(error.body, error.status)
        except ConnectionError:  # the client has gone, or the drop was planted
            return web.Response()

    def _refused(self, authorization: str | None) -> web.Response | None:
        faults = self.faults
        if faults.key_refused is not None and authorization is not None:
            message = "Incorrect API key provided."
            return _json(error_body(faults.key_refused, "auth", message), faults.key_refused)
        if faults.api_key is not None and authorization != f"Bearer {faults.api_key}":
            return _json({"error": "Unauthorized"}, 401)
        return None

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self.faults.metrics:
            return _json({"detail": "Not Found"}, 404)
        text = metrics_text(self.engine.counters, self.faults)
        if self.faults.metrics_reset:
            self.engine.counters = Counters()
        return web.Response(text=text, content_type="text/plain")

    async def _models(self, request: web.Request) -> web.Response:
        length = self.faults.max_model_len
        models = [
            {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": length}
            for name in self.faults.served
        ]
        return _json({"object": "list", "data": models})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.read()
        try:
            data = json.loads(body)
        except ValueError:
            raise RefusedError(400, "BadRequestError", "The body is not JSON.") from None
        asked = read_request(data, chat=chat, faults=self.faults)
        number = self.num_generating
        self.num_generating += 1
        exchange = Exchange(self, request, asked, number, hit=self._hit(asked))
        key = f"{request.path} {json.dumps(data, sort_keys=True)}"
        if self.faults.cache and key in self._cached:
            kind = SSE if asked.stream else JSON
            return web.Response(body=self._cached[key], content_type=kind)
        response = await exchange.answer()
        if self.faults.cache:
            self._cached[key] = bytes(exchange.sent)
        return response

    def _hit(self, asked: Asked) -> bool:
        """Whether the faults of transport hit this request."""
        faults = self.faults
        if faults.only not in asked.prompt:
            return False
        number = self.num_liable
        self.num_liable += 1
        if faults.failures is not None and number >= faults.failures:
            return False
        return random.Random(f"hit/{faults.flip_seed}/{number}").random() < faults.rate


class Exchange:
    """One request that asks for tokens, and its answer."""

    def __init__(
        self,
        server: MisbehavingServer,
        request: web.Request,
        asked: Asked,
        number: int,
        *,
        hit: bool,
    ):
        self.request = request
        self.asked = asked
        self.sent = bytearray()
        self._engine = server.engine
        self._server_faults = server.faults
        self._faults = server.faults if hit else _well_behaved(server.faults)
        self._generation = self._submitted(number)
        self._reply = Reply(asked, number, self._generation.prompt_token_ids, self._faults)

    def _submitted(self, number: int) -> Generation:
        """The request for the engine; not yet queued."""
        faults = self._faults
        if self.request.path == faults.ignores_seed_on:
            faults = replace(faults, ignores_seed=True)
        replica = number % len(faults.system_fingerprints) if faults.replica_differs else 0
        return Generation(
            self.asked.prompt,
            number=number,
            max_tokens=self.asked.max_tokens,
            temperature=self.asked.temperature,
            seed=self.asked.seed,
            faults=faults,
            replica=replica,
            cache_salt=self.asked.cache_salt,
        )

    async def answer(self) -> web.StreamResponse:
        """Answer, with the planted faults."""
        faults = self._faults
        if faults.status is not None:
            return self._error(faults.status)
        await self._misbehave("before")
        if faults.body is not None:
            return self._not_a_reply(faults.body)
        if faults.flood in {"line", "header"}:
            return await self._flood()
        self._engine.submit(self._generation)
        try:
            streams = self.asked.stream and not self._server_faults.whole
            return await (self._stream() if streams else self._whole())
        finally:
            self._engine.abort(self._generation)

    def _error(self, status: int) -> web.Response:
        headers = {}
        if self._faults.retry_after is not None:
            headers["Retry-After"] = self._faults.retry_after
        body = error_body(status, "server_error", f"Planted failure with status {status}.")
        return _json(body, status, headers)

    async def _misbehave(self, when: str) -> None:
        """Drop the connection or stop sending, if that is planted for this moment."""
        if self._faults.drop == when:
            _reset(self.request.transport)
            raise ConnectionResetError("planted")
        if self._faults.stall == when:
            await asyncio.sleep(self._faults.stall_s)

    def _not_a_reply(self, name: str) -> web.Response:
        body, content_type = BODIES[name]
        if self.asked.stream and content_type == JSON and not self._faults.whole:
            body, content_type = b"data: " + body + b"\n\ndata: [DONE]\n\n", SSE
        return web.Response(body=body, content_type=self._faults.content_type or content_type)

    async def _flood(self) -> web.StreamResponse:
        if self._faults.flood == "header":
            return web.Response(headers={"X-Flood": "x" * 2**20})
        response = web.StreamResponse(headers={"Content-Type": SSE if self.asked.stream else JSON})
        await response.prepare(self.request)
        await response.write(b'data: {"choices": [{"index": 0, "text": "')
        while True:
            await response.write(b"x" * 2**16)

    async def _whole(self) -> web.StreamResponse:
        tokens = [token async for token in self._tokens()]
        data = encode(self._reply.whole(tokens), self._faults.encoding)
        if self._faults.truncate:
            data = data[: len(data) // 2]
        self.sent += data
        return web.Response(body=data, content_type=self._faults.content_type or JSON)

    async def _tokens(self) -> AsyncIterator[Token]:
        """The tokens as they are generated, with the planted drops and pauses between them."""
        num_tokens = 0
        while True:
            token = await self._generation.tokens.get()
            num_tokens += 1
            yield token
            for when, after in TOKENS_BEFORE.items():
                if num_tokens == after:
                    await self._misbehave(when)
            if token.finish_reason is not None:
                self._reply.cached_tokens = self._generation.cached_tokens
                return

    async def _stream(self) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = self._faults.content_type or SSE
        if self._faults.instance is not None:
            response.headers["X-Served-By"] = self._faults.instance
        await response.prepare(self.request)
        await self._event(response, self._reply.first_chunk())
        start = num_tokens = 0
        async for token in self._tokens():
            if self._faults.truncate and num_tokens == TOKENS_BEFORE["middle"]:
                break
            await self._event(response, self._reply.chunk(token, start))
            start += len(piece(token.token_id))
            num_tokens += 1
        else:
            await self._event(response, self._reply.repeat_chunk())
            await self._event(response, self._reply.usage_chunk(num_tokens))
            await self._send(response, b"data: [DONE]\n\n")
        if self._faults.buffered:
            await response.write(bytes(self.sent))
        await response.write_eof()
        return response

    async def _event(self, response: web.StreamResponse, data: dict[str, Any] | None) -> None:
        if data is not None:
            event = b"data: " + encode(data, self._faults.encoding) + b"\n\n"
            await self._send(response, event)

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        if self._server_faults.cache or self._faults.buffered:
            self.sent += data
        if not self._faults.buffered:
            await response.write(data)


def _reset(transport: asyncio.Transport | None) -> None:
    """Close a connection by a reset, not by an orderly end."""
    if transport is not None:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


def _well_behaved(faults: Faults) -> Faults:
    """The same faults without those of transport, for requests that these do not hit."""
    return replace(
        faults,
        status=None,
        drop=None,
        stall=None,
        truncate=False,
        flood=None,
        encoding=None,
        body=None,
        content_type=None,
    )


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(data, status=status, headers=headers)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[=VALUE]")
    options = parser.parse_args()
    server = MisbehavingServer(parse(options.fault))
    web.run_app(server.app(), host=options.host, port=options.port, access_log=None)


if __name__ == "__main__":
    main()
