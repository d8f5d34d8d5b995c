"""A prompt that is a chat is sent as its messages, by every engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from asking import ask

from detcheck.engines.openai.request import Dialect, Question
from detcheck.engines.prompts import encode_prompt
from detcheck.engines.vllm.engine import VllmEngine
from detcheck.errors import UsageError
from detcheck.prompts import ChatMessage, PromptItem, chat_text

CHAT = (ChatMessage("system", "Be short."), ChatMessage("user", "Why?"))
ASKED: dict[str, Any] = {
    "prompts": (chat_text(CHAT), "How?"),
    "items": (PromptItem(messages=CHAT), PromptItem()),
}


class Templated:
    """A tokenizer whose template writes the roles, and whose token ids are characters."""

    chat_template: str | None = "planted"
    bos_token = "^"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> dict[str, Any]:
        return self("|".join(f"{each['role']}={each['content']}" for each in messages))

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, Any]:
        marked = self.bos_token + text if add_special_tokens else text
        return {"input_ids": [ord(character) for character in marked]}


def encoded(*args: Any, **options: Any) -> str:
    return "".join(map(chr, encode_prompt(*args, **options)))


def test_the_template_is_applied_to_the_messages() -> None:
    text = encoded(Templated(), "known as this", chat_template=True, chat=CHAT)
    assert text == "system=Be short.|user=Why?"
    assert encoded(Templated(), "Why?", chat_template=True) == "user=Why?"
    assert encoded(Templated(), "Why?", chat_template=False, chat=CHAT[1:]) == "^Why?"


def test_the_first_token_is_not_added_to_text_that_begins_with_it() -> None:
    assert encoded(Templated(), "Why?", chat_template=False) == "^Why?"
    assert encoded(Templated(), "^Why?", chat_template=False) == "^Why?"


def test_a_chat_without_a_template_is_refused() -> None:
    bare = Templated()
    bare.chat_template = None
    with pytest.raises(UsageError, match="this model has no chat template"):
        encode_prompt(bare, "known as this", chat_template=True, chat=CHAT)
    with pytest.raises(UsageError, match="Prompt 1 is a chat, which needs the model's chat"):
        ask(**ASKED, chat_template=False)


def test_an_experiment_knows_the_chat_of_each_prompt() -> None:
    experiment = ask(**ASKED).experiment
    assert experiment.chat_of(chat_text(CHAT)) == CHAT
    assert experiment.chat_of("How?") == (ChatMessage("user", "How?"),)
    assert experiment.chat_of("a filler") == (ChatMessage("user", "a filler"),)


def test_a_server_is_sent_the_messages() -> None:
    question = Question(chat_text(CHAT), 8, chat=CHAT)
    body = json.loads(Dialect("toy", chat=True).body(question))
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
    ]
    alone = json.loads(Dialect("toy", chat=True).body(Question("Why?", 8)))
    assert alone["messages"] == [{"role": "user", "content": "Why?"}]
    assert json.loads(Dialect("toy", chat=False).body(Question("Why?", 8)))["prompt"] == "Why?"


def test_vllms_worker_is_sent_the_messages() -> None:
    asked = ask(**ASKED, engine="vllm", model="m", kernels=("stock",))
    engine = object.__new__(VllmEngine)
    engine.experiment, engine.target = asked
    engine._source, engine._dtype = "m", "bfloat16"
    chats = msgspec.to_builtins(engine._setup(("stock", 1)).chats)
    assert chats[chat_text(CHAT)] == msgspec.to_builtins(CHAT)
    assert list(chats["How?"]) == [{"role": "user", "content": "How?"}]
