"""One item of a samples file of lm-evaluation-harness as the prompt that the model was sent.

The harness writes these files with `--log_samples` (versions 0.4 and later): an object a line, or
before version 0.4.3 one array of objects, with `doc_id`, `target` and `arguments`. A request to a
chat model is logged as its messages, in JSON; any other request as the text that was sent, to which
no chat template may be applied again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from detcheck.errors import UsageError
from detcheck.prompts.item import ChatMessage, PromptItem, chat_text, check_text
from detcheck.prompts.rows import FileRow, chat_of

_READ = frozenset(("doc_id", "target", "arguments"))


def array_items(text: str) -> list[tuple[int, Any]]:
    """The objects of a text that is one JSON array, each with the number of its first line.

    Empty if the text is anything else.
    """
    if not text.lstrip().startswith("["):
        return []
    try:
        found = list(_objects(text))
    except (ValueError, RecursionError):
        return []
    return found if all(isinstance(value, Mapping) for _, value in found) else []


def _objects(text: str) -> Iterator[tuple[int, Any]]:
    """The values of a JSON array with their lines; raises ValueError if it is none."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = between.match(text, at).end()  # type: ignore[union-attr]  # matches nothing, too
        if text.startswith("]", at):
            if text[at + 1 :].strip():
                raise ValueError("text behind the array")
            return
        line, counted = line + text.count("\n", counted, at), at
        value, at = decoder.raw_decode(text, at)
        yield line, value


def is_sample(value: Any) -> bool:
    """Whether a JSON value is, or once was, a line of a samples file."""
    if not isinstance(value, Mapping) or "prompt" in value or "messages" in value:
        return False
    return "doc_id" in value or {"arguments", "resps"} <= value.keys()


def sample_row(value: Mapping[str, Any], place: str, line: int) -> FileRow:
    """The prompt as it was sent, with the item's target as the right answer.

    Raises UsageError if the line is not one that version 0.4 or later writes, or if the item is a
    choice among prompts, as in Winogrande.
    """
    try:
        requests = _requests(value["arguments"])
        sent, options = requests[0][0], requests[0][1:]
        identifier = str(value["doc_id"])
    except (LookupError, TypeError) as error:
        raise UsageError(
            f"{place} is not an item of a samples file of lm-evaluation-harness 0.4 or later "
            f"({_reason(error)}): write it with --log_samples."
        ) from error
    if any(request[0] not in (sent, "") for request in requests):  # "": the text without a prompt
        raise UsageError(
            f"{place} is a choice among different prompts, which is no question to ask a model: "
            "leave its task out."
        )
    messages = _chat(sent, place)
    prompt = chat_text(messages) if messages else sent
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{place} holds no text that was sent.")
    item = PromptItem(
        id=identifier,
        answer=_target(value.get("target"), [request[1:] for request in requests]),
        messages=messages,
        until=_until(options),
        fields={name: kept for name, kept in value.items() if name not in _READ},
    )
    return FileRow(place, line, check_text(prompt, place), item, as_sent=not messages)


def _requests(arguments: Any) -> list[list[Any]]:
    """The requests of an item, each as its arguments in order.

    They are `{"gen_args_0": {"arg_0": prompt, "arg_1": options}, …}`, or lists of the same.
    """
    given = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    if not isinstance(given, list):
        raise TypeError("its arguments are neither a list nor an object")
    requests = [
        list(request.values()) if isinstance(request, Mapping) else request for request in given
    ]
    if not requests or not all(isinstance(request, list) and request for request in requests):
        raise TypeError("it holds no request")
    return requests


def _chat(sent: Any, place: str) -> tuple[ChatMessage, ...]:
    """The messages of a request to a chat model; empty if text was sent."""
    while isinstance(sent, list) and len(sent) == 1 and isinstance(sent[0], str):
        sent = sent[0]
    if isinstance(sent, str) and sent.lstrip().startswith("["):
        try:
            sent = json.loads(sent)
        except (ValueError, RecursionError):
            return ()
    if not isinstance(sent, list) or not all(isinstance(m, Mapping) and "role" in m for m in sent):
        return ()
    plain = [{"role": m["role"], "content": m.get("content")} for m in sent]
    return chat_of(plain, place)


def _target(target: Any, continuations: list[list[Any]]) -> str | None:
    """The right answer as text; of a choice among continuations, the text of the right one."""
    texts = [rest[0] for rest in continuations if rest and isinstance(rest[0], str)]
    number = int(target) if isinstance(target, str) and target.isdecimal() else target
    if len(texts) > 1 and isinstance(number, int) and 0 <= number < len(texts):
        return texts[number].strip() or None
    while isinstance(target, list) and len(target) == 1:
        target = target[0]
    if target is None or isinstance(target, str):
        return target if target and target.strip() else None
    return json.dumps(target)


def _until(options: list[Any]) -> tuple[str, ...]:
    """The texts that end an answer, of the options of a request that generates."""
    given = options[0].get("until") if options and isinstance(options[0], Mapping) else None
    texts = [given] if isinstance(given, str) else given
    return tuple(text for text in texts or () if isinstance(text, str) and text)


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
