"""A small server of the OpenAI API in this process, with faults to plant."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from .behaviour import Behaviour

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


class ToyServer:
    """Answers requests as one `Behaviour` says."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour
        self.url = ""
        self._number = 0
        self._cached: dict[str, tuple[str, list[int]]] = {}
        self._lock: asyncio.Lock | None = None

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/metrics", self.metrics)
        app.on_response_prepare.append(self._compress)
        return app

    async def _compress(self, request: web.Request, response: web.StreamResponse) -> None:
        name = self.behaviour.compresses
        if name in ("gzip", "deflate"):
            response.enable_compression(web.ContentCoding(name))

    async def metrics(self, request: web.Request) -> web.Response:
        if self.behaviour.metrics is None:
            raise web.HTTPNotFound
        return web.Response(text=self.behaviour.metrics)

    async def models(self, request: web.Request) -> web.Response:
        b = self.behaviour
        b.headers.append(dict(request.headers))
        if (early := self._early(request)) is not None:
            return early
        if b.compresses not in (None, "gzip", "deflate"):
            said = b"\x1b\x00\x00\x8b\x02" * 9
            return web.Response(body=said, headers={"Content-Encoding": b.compresses})
        if b.models_error is not None:
            return error(*b.models_error)
        entries = [{"id": name, "object": "model"} for name in b.models]
        if b.context is not None:
            for entry in entries:
                entry["max_model_len"] = b.context
        return web.json_response({"object": "list", "data": entries})

    def _early(self, request: web.Request) -> web.Response | None:
        b = self.behaviour
        if b.html:
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if b.redirect:
            return web.Response(status=307, headers={"Location": b.redirect})
        if b.key is not None and request.headers.get("Authorization") != f"Bearer {b.key}":
            said = f"wrong key {request.headers.get('Authorization')}"
            return error(401, said)
        return None

    async def complete(self, request: web.Request) -> web.StreamResponse:
        b = self.behaviour
        if (early := self._early(request)) is not None:
            return early
        if b.chat_error is not None and request.path.endswith("/chat/completions"):
            return error(*b.chat_error)
        body = await request.json()
        b.seen.append(body)
        b.headers.append(dict(request.headers))
        self._number += 1
        number = self._number
        for name in b.refuses:
            if name in body:
                said = f"Unrecognized request argument supplied: {name}"
                return error(b.refusal, said)
        if b.context is not None and body["max_tokens"] + len(prompt_of(body)) > b.context:
            said = "This model's maximum context length is exceeded"
            return error(400, said)
        b.in_flight += 1
        b.most_in_flight = max(b.most_in_flight, b.in_flight)
        try:
            return await self._stream(request, body, number)
        finally:
            b.in_flight -= 1

    async def _stream(
        self, request: web.Request, body: dict[str, Any], number: int
    ) -> web.StreamResponse:
        b = self.behaviour
        fault = b.fault(number, body)
        if fault in ("500", "503", "429"):
            headers = {"Retry-After": "0"} if fault != "500" else {}
            said = {"error": {"message": f"no {request.headers.get('Authorization', '')}"}}
            return web.json_response(said, status=int(fault), headers=headers)
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if fault == "stall":
            await asyncio.sleep(30)
        if body.get("n", 1) > 1:
            return await self._choices(request, response, body, number)
        if (canned := b.canned(number, body, b.in_flight)) is not None:
            return await self._send_canned(response, body, canned)
        if fault == "flood":
            for _ in range(4096):
                await response.write(b"x" * 65536)
        elif fault == "malformed":
            await response.write(b"data: {not json}\n\n")
        elif fault == "latin1":
            await response.write('data: {"choices": [{"text": "é"}]}\n\n'.encode("latin-1"))
        else:
            await self._tokens(request, response, body, number, truncate=fault == "truncate")
        return response

    async def _choices(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: dict[str, Any],
        number: int,
    ) -> web.StreamResponse:
        """Several choices: each sampled by a seed of its own, their tokens in turn, last first."""
        b, n = self.behaviour, body["n"]
        crowded = b.in_flight > 1
        seeds = [f"{body.get('seed')}/{0 if b.choice_fault == 'cloned' else i}" for i in range(n)]
        answers = [self._answer(request, body | {"seed": seed}, number)[1] for seed in seeds]
        indices = list(range(n))
        if b.choice_fault == "renumbered" and crowded:
            indices[:2] = [1, 0]
        if b.choice_fault == "missing":
            indices, answers = indices[:-1], answers[:-1]
        if b.choice_fault == "duplicated":
            indices[-1] = 0
        numbered = list(zip(indices, answers, strict=True))[::-1]
        if b.whole:
            await asyncio.sleep(10 * b.token_s)
            await response.write(json.dumps(self._whole(body, number, numbered)).encode())
            return response
        length = max(map(len, answers))
        for place in range(length + 1):
            for index, ids in numbered:
                chunk = self._chunk(body, f"cmpl-{number}", number, [*ids, None][place])
                chunk["choices"][0]["index"] = index
                await response.write(event(chunk | {"usage": None}))
            await asyncio.sleep(b.token_s)
        used = {"completion_tokens": sum(len(ids) for _, ids in numbered)}
        await response.write(event({"choices": [], "usage": used}) + b"data: [DONE]\n\n")
        return response

    def _whole(
        self, body: dict[str, Any], number: int, numbered: list[tuple[int, list[int]]]
    ) -> dict[str, Any]:
        """One object with all choices."""
        choices = []
        for index, ids in numbered:
            text = "".join(f" {WORDS[token]}" for token in ids)
            choice = {"index": index, "finish_reason": "length", "token_ids": ids}
            said = {"message": {"role": "assistant", "content": text}}
            choices.append(choice | (said if "messages" in body else {"text": text}))
        usage = {"completion_tokens": sum(len(ids) for _, ids in numbered)}
        if (hidden := self.behaviour.hidden_tokens) > 0:
            usage |= {"reasoning_tokens": hidden}
            usage["completion_tokens"] += hidden
            for choice in choices:
                del choice["token_ids"]
        return {"id": f"cmpl-{number}", "choices": choices, "usage": usage}

    async def _send_canned(
        self, response: web.StreamResponse, body: dict[str, Any], text: str
    ) -> web.StreamResponse:
        await asyncio.sleep(10 * self.behaviour.token_s)
        choice = {"index": 0, "finish_reason": "stop", "text": text}
        choice |= {"delta": {"content": text}} if "messages" in body else {}
        self._number += 1
        await response.write(event({"id": f"cmpl-{self._number}", "choices": [choice]}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _tokens(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: dict[str, Any],
        number: int,
        *,
        truncate: bool,
    ) -> None:
        b = self.behaviour
        stored = b.cache and self._question(body) in self._cached
        reply_id, ids = self._answer(request, body, number)
        chunks = [self._chunk(body, reply_id, number, token) for token in ids]
        if truncate:
            chunks = chunks[:2]
        else:
            chunks.append(self._chunk(body, reply_id, number, None))
        if self._lock is None:
            self._lock = asyncio.Lock()
        first, rest = (chunks[:1], chunks[1:]) if b.greets_first else ([], chunks)
        if "messages" in body:
            hello = {"id": reply_id, "choices": [{"delta": {"role": "assistant", "content": ""}}]}
            await response.write(event(hello))
        for chunk in first:
            await response.write(event(chunk))
        if b.serial or b.greets_first:
            async with self._lock:
                await self._write(response, rest)
        else:
            await self._write(response, rest, at_once=stored)

    async def _write(
        self, response: web.StreamResponse, chunks: list[dict[str, Any]], *, at_once: bool = False
    ) -> None:
        b = self.behaviour
        done = b"data: [DONE]\n\n" if chunks and chunks[-1].get("usage") else b""
        if b.one_piece:
            await asyncio.sleep(b.token_s * len(chunks))
            await response.write(b"".join(map(event, chunks)) + done)
            return
        for chunk in chunks:
            await asyncio.sleep(0 if at_once else b.token_s)
            await response.write(event(chunk))
        await response.write(done)

    def _question(self, body: dict[str, Any]) -> str:
        return json.dumps([prompt_of(body), body.get("seed"), body.get("temperature")])

    def _answer(
        self, request: web.Request, body: dict[str, Any], number: int
    ) -> tuple[str, list[int]]:
        b = self.behaviour
        question = self._question(body)
        if b.cache and question in self._cached:
            return self._cached[question]
        limit = body.get("max_tokens", body.get("max_completion_tokens", 16))
        if b.ignores_max_tokens:
            limit *= 2
        key = prompt_of(body)
        if body.get("temperature", 1.0) > 0 or b.ignores_temperature:
            key += str(random.random() if b.ignores_seed else body.get("seed"))
        rng = random.Random(key)
        ids = [rng.randrange(len(WORDS)) for _ in range(limit)]
        if b.differ_above is not None and b.in_flight > b.differ_above and len(ids) > 3:
            ids[3] = (ids[3] + 1) % len(WORDS)
        answer = (f"cmpl-{number}", ids)
        self._cached[question] = answer
        return answer

    def _chunk(
        self, body: dict[str, Any], reply_id: str, number: int, token: int | None
    ) -> dict[str, Any]:
        b = self.behaviour
        chunk: dict[str, Any] = {
            "id": reply_id,
            "system_fingerprint": b.fingerprints[number % len(b.fingerprints)],
        }
        if token is None:
            limit = body.get("max_tokens", body.get("max_completion_tokens", 16))
            used = limit * (2 if b.ignores_max_tokens else 1)
            ending = {"index": 0, "delta": {}, "text": "", "finish_reason": b.ends}
            return chunk | {
                "choices": [ending],
                "usage": {"completion_tokens": used} if b.usage else None,
            }
        text = f" {WORDS[token]}"
        if b.echo_key:
            text += f" {b.key}"
        chat = "messages" in body
        if b.hides:
            return chunk | {"choices": [{"delta": {"pondering": text}, "finish_reason": None}]}
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": {"content": text}} if chat else {"text": text}
        if b.musings:
            choice["musings"] = f"token {token}"
        if b.token_ids and number % b.ids_every == 0 and body.get("return_token_ids"):
            choice["token_ids"] = [token]
        if b.logprobs and body.get("logprobs"):
            choice["logprobs"] = ranked(token, chat=chat)
        return chunk | {"choices": [choice]}


def ranked(token: int, *, chat: bool) -> dict[str, Any]:
    text, other = f" {WORDS[token]}", f" {WORDS[(token + 1) % len(WORDS)]}"
    if not chat:
        top = {text: -0.25, other: -1.5}
        return {"tokens": [text], "token_logprobs": [-0.25], "top_logprobs": [top]}
    tops = [{"token": text, "logprob": -0.25}, {"token": other, "logprob": -1.5}]
    return {"content": [{"token": text, "logprob": -0.25, "top_logprobs": tops}]}


def error(status: int, said: str) -> web.Response:
    return web.json_response({"error": {"message": said}}, status=status)


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"] if "messages" in body else body["prompt"]


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@contextmanager
def serving(behaviour: Behaviour, ssl_context: Any = None) -> Iterator[ToyServer]:
    """Run the server in a thread of its own, on a free port of this machine."""
    server = ToyServer(behaviour)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context, backlog=2048)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        scheme = "http" if ssl_context is None else "https"
        server.url = f"{scheme}://127.0.0.1:{port}/v1"
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
