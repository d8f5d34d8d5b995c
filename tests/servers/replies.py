"""Parse requests and write replies, in OpenAI's format with vLLM's additions."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .faults import THINKING_TOKENS, Faults
from .script import piece
from .step_engine import Token

JSON = "application/json"
SSE = "text/event-stream"

BODIES: dict[str, tuple[bytes, str]] = {
    "malformed": (b'{"id": "x", "choices": [{"index": 0, ', JSON),
    "html": (b"<!doctype html><title>Sign in</title><h1>Sign in to continue</h1>", "text/html"),
    "empty": (b"", JSON),
    "list": (b"[]", JSON),
    "null": (b"null", JSON),
    "no-choices": (b'{"id": "x", "object": "chat.completion", "choices": []}', JSON),
    "wrong-types": (
        b'{"id": 7, "choices": [{"index": "a", "message": [], "text": {"b": 1}, "logprobs": 3, '
        b'"token_ids": ["x", null, -1], "finish_reason": 12}], "usage": "much"}',
        JSON,
    ),
    "deep": (b"[" * 100_000, JSON),
    "huge-number": (b'{"choices": [{"index": 0, "token_ids": [' + b"9" * 100_000 + b"]}]}", JSON),
    "surrogate": (
        b'{"choices": [{"index": 0, "text": "\\ud800", "message": {"content": "\\ud800"}, '
        b'"finish_reason": "stop"}]}',
        JSON,
    ),
    "object-error": (b'{"object": "error", "message": "The model is loading", "code": 503}', JSON),
    "words": (b"upstream connect error", "text/plain"),
    "error": (b'{"error": {"message": "CUDA error", "type": "internal", "code": 500}}', JSON),
}
"""Bodies that are no reply, by name, with their content type. All have status 200."""


class RefusedError(Exception):
    """A request that is refused: status, OpenAI error type, message."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = error_body(status, kind, message, param)


def error_body(status: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI and vLLM write it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request."""

    chat: bool
    model: str
    prompt: str
    max_tokens: int
    temperature: float
    seed: int | None
    stream: bool
    include_usage: bool
    num_logprobs: int | None
    """Top log-probabilities of each token; None if none were asked for."""
    token_ids: bool
    cache_salt: str


def read_request(data: Any, *, chat: bool, faults: Faults) -> Asked:
    """Parse a request; raise RefusedError if it cannot be answered."""
    if not isinstance(data, dict):
        raise RefusedError(400, "BadRequestError", "The body must be a JSON object.")
    for name in faults.refuses:
        if data.get(name) is not None:
            message = f"Unrecognized request argument supplied: {name}"
            raise RefusedError(400, "invalid_request_error", message, name)
    model = data.get("model") or faults.served[0]
    if model not in faults.served:
        raise RefusedError(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
    temperature = data.get("temperature")
    if temperature is not None and temperature == faults.refused_temperature:
        message = f"temperature must not be {temperature}"
        raise RefusedError(400, "invalid_request_error", message, "temperature")
    forced = faults.forced_temperature
    return Asked(
        chat=chat,
        model=model,
        prompt=_prompt(data, chat=chat),
        max_tokens=_max_tokens(data, chat=chat, faults=faults),
        temperature=forced if forced is not None else 1.0 if temperature is None else temperature,
        seed=data.get("seed"),
        stream=bool(data.get("stream")),
        include_usage=bool((data.get("stream_options") or {}).get("include_usage")),
        num_logprobs=_num_logprobs(data, chat=chat) if faults.gives_logprobs else None,
        token_ids=bool(data.get("return_token_ids")) and faults.gives_token_ids,
        cache_salt=str(data.get("cache_salt") or ""),
    )


def _prompt(data: dict[str, Any], *, chat: bool) -> str:
    """The text to answer; a chat is wrapped in a template, so its answers are others."""
    if not chat:
        prompt = data.get("prompt")
        if not isinstance(prompt, str):
            raise RefusedError(400, "BadRequestError", "prompt must be a string here.", "prompt")
        return prompt
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "BadRequestError", "messages must be a list.", "messages")
    return "".join(f"<|{m.get('role')}|>{m.get('content')}" for m in messages) + "<|assistant|>"


def _max_tokens(data: dict[str, Any], *, chat: bool, faults: Faults) -> int:
    value = data.get("max_tokens")
    if chat and data.get("max_completion_tokens") is not None:
        value = data["max_completion_tokens"]
    if value is None:
        value = 16 if not chat else faults.answer_tokens
    if not isinstance(value, int) or value < 1:
        raise RefusedError(400, "BadRequestError", "max_tokens must be at least 1.", "max_tokens")
    prompt_tokens = len(_prompt(data, chat=chat).encode()) // 2
    if prompt_tokens + value > faults.max_model_len:
        message = (
            f"This model's maximum context length is {faults.max_model_len} tokens. However, "
            f"you requested {value} output tokens and your prompt contains {prompt_tokens} input "
            "tokens."
        )
        raise RefusedError(400, "BadRequestError", message, "input_tokens")
    return 1_000_000 if faults.ignores_max_tokens else value


def _num_logprobs(data: dict[str, Any], *, chat: bool) -> int | None:
    if chat:
        return data.get("top_logprobs") or 0 if data.get("logprobs") else None
    return data.get("logprobs")


class Reply:
    """Writes one answer: whole, or as pieces of a stream."""

    def __init__(self, asked: Asked, number: int, prompt_ids: list[int], faults: Faults):
        self.asked = asked
        self.faults = faults
        self.prompt_ids = prompt_ids
        fingerprints = faults.system_fingerprints
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{_id(number, faults)}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": fingerprints[number % len(fingerprints)],
        }
        self._num_tokens = 0
        self._text = ""
        self.cached_tokens = 0
        """Prompt tokens from the prefix cache, as far as they are known."""

    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The reply in one JSON object."""
        kind = "chat.completion" if self.asked.chat else "text_completion"
        said: dict[str, Any] = {}
        for index, token in enumerate(tokens):
            for name, value in self._said(token, index).items():
                said[name] = said[name] + value if name in said else value
        said = {"message": {"role": "assistant", **said}} if self.asked.chat else said
        reply = {**self._head, "object": kind, "choices": [self._choice(tokens, said)]}
        self._add_prompt_ids(reply)
        if self.faults.gives_usage:
            reply["usage"] = self._usage(len(tokens))
        return reply

    def first_chunk(self) -> dict[str, Any] | None:
        """The role, with which a streamed chat begins."""
        if not self.asked.chat:
            return None
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}}
        return self._chunk([choice | {"finish_reason": self.faults.middle_reason}])

    def chunk(self, token: Token, start: int) -> dict[str, Any]:
        """One token; `start` is the length of the text before it."""
        said = self._said(token, self._num_tokens)
        self._text += said.get("text", "") if not self.asked.chat else str(said.get("content", ""))
        choice = self._choice([token], {"delta": said} if self.asked.chat else said, start)
        if self._num_tokens == self.faults.ids_missing_at:
            choice.pop("token_ids", None)
        self._num_tokens += 1
        if token.finish_reason is None:
            choice["finish_reason"] = self.faults.middle_reason
        elif self.faults.last_reason != "as it is":
            choice["finish_reason"] = self.faults.last_reason
        chunk = self._chunk([choice])
        if start == 0:
            self._add_prompt_ids(chunk)
        return chunk

    def repeat_chunk(self) -> dict[str, Any] | None:
        """The whole text again, if that is planted."""
        if self.faults.repeats_whole is None:
            return None
        said = {"content": self._text} if self.asked.chat else {"text": self._text}
        said = {self.faults.repeats_whole: said} if self.asked.chat else said
        return self._chunk([{"index": 0, **said, "finish_reason": "length"}])

    def _said(self, token: Token, index: int) -> dict[str, Any]:
        """The fields of a message that hold the text of one token."""
        faults, text = self.faults, piece(token.token_id)
        if index == faults.shown_at:
            text += f" {token.batch}"
        if not self.asked.chat:
            return {"text": text}
        if faults.thinking is None:
            return {"content": text}
        return _thought(text, faults.thinking, thinks=index < THINKING_TOKENS)

    def usage_chunk(self, num_tokens: int) -> dict[str, Any] | None:
        """The last chunk, if it was asked for."""
        if not self.asked.include_usage or not self.faults.gives_usage:
            return None
        return {**self._chunk([]), "usage": self._usage(num_tokens)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}

    def _choice(
        self, tokens: Sequence[Token], said: dict[str, Any], start: int = 0
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            **said,
            "logprobs": self._logprobs(tokens, start),
            "finish_reason": tokens[-1].finish_reason if tokens else None,
            "stop_reason": None,
        }
        if self.asked.token_ids:
            choice["token_ids"] = [token.token_id for token in tokens]
        return choice

    def _add_prompt_ids(self, reply: dict[str, Any]) -> None:
        """As vLLM does: at the top of a chat, in the choice of a completion."""
        if self.asked.token_ids:
            target = reply if self.asked.chat else reply["choices"][0]
            target["prompt_token_ids"] = self.prompt_ids

    def _logprobs(self, tokens: Sequence[Token], start: int) -> dict[str, Any] | None:
        if self.asked.num_logprobs is None:
            return None
        if self.asked.chat:
            return {"content": [_chat_logprob(t, self.asked.num_logprobs) for t in tokens]}
        return _completion_logprobs(tokens, self.asked.num_logprobs, start)

    def _usage(self, num_tokens: int) -> dict[str, Any]:
        prompt_tokens = len(self.prompt_ids)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": prompt_tokens + num_tokens,
        }
        if (cached := self.faults.reports_cached) is not None:
            number = self.cached_tokens if cached == "right" else cached
            usage["prompt_tokens_details"] = {"cached_tokens": number}
        if self.faults.thinking is None:
            return usage
        details = {"reasoning_tokens": min(num_tokens, THINKING_TOKENS)}
        return {**usage, "completion_tokens_details": details}


def _id(number: int, faults: Faults) -> str:
    if faults.random_ids:
        return uuid.uuid4().hex
    drawn = random.Random(number).randrange(faults.id_pool) if faults.id_pool else number
    return f"{drawn:08x}"


def _thought(text: str, how: str, *, thinks: bool) -> dict[str, Any]:
    """One token of a model that thinks first, as `Faults.thinking` sends it."""
    if how == "parts":
        part = {"type": "text", "text": text}
        return {"content": [{"type": "thinking", "thinking": [part]} if thinks else part]}
    if not thinks:
        return {"content": text}
    fields = {"reasoning_content": ("reasoning_content",), "hidden": ()}
    names = fields.get(how, ("reasoning_content", "reasoning"))
    return dict.fromkeys(names, text)


def _shown(token_id: int) -> str:
    return piece(token_id) or "<|im_end|>"


def _chosen_logprob(token: Token) -> float:
    return token.ranked.logprobs[token.ranked.token_ids.index(token.token_id)]


def _chat_logprob(token: Token, top: int) -> dict[str, Any]:
    ranked = zip(token.ranked.token_ids[:top], token.ranked.logprobs, strict=False)
    entry = _logprob_entry(token.token_id, _chosen_logprob(token))
    return {**entry, "top_logprobs": [_logprob_entry(*pair) for pair in ranked]}


def _logprob_entry(token_id: int, logprob: float) -> dict[str, Any]:
    shown = _shown(token_id)
    return {"token": shown, "logprob": logprob, "bytes": list(shown.encode())}


def _completion_logprobs(tokens: Sequence[Token], top: int, start: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(piece(token.token_id))
    ranked = [zip(t.ranked.token_ids[:top], t.ranked.logprobs, strict=False) for t in tokens]
    return {
        "text_offset": offsets,
        "tokens": [_shown(token.token_id) for token in tokens],
        "token_logprobs": [_chosen_logprob(token) for token in tokens],
        "top_logprobs": [{_shown(i): logprob for i, logprob in pairs} for pairs in ranked],
    }


def encode(data: Any, encoding: str | None) -> bytes:
    """JSON bytes, in the encoding that a fault asks for."""
    text = json.dumps(data, ensure_ascii=False)
    if encoding == "invalid":
        return text.encode().replace(b'"choices"', b'"junk": "\xff\xfe\xc3", "choices"')
    return text.encode(encoding or "utf-8", errors="replace")
