"""Prompts as token ids: how a prompt is encoded, and whether it fits into the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from detcheck.errors import UsageError
from detcheck.prompts import ChatMessage
from detcheck.text import count


def encode_prompt(
    tokenizer: Any,
    prompt: str,
    *,
    chat_template: bool,
    chat: Sequence[ChatMessage] = (),
) -> tuple[int, ...]:
    """Token ids of a prompt, ready for the model to answer.

    The tokenizer's chat template is applied if `chat_template` is true and it has one: to `chat`,
    or to `prompt` as one message of the user if `chat` is empty. Raises UsageError if several
    messages are to be sent and there is no template.
    """
    messages = chat or (ChatMessage("user", prompt),)
    if chat_template and tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(
            msgspec.to_builtins(list(messages)), add_generation_prompt=True, return_dict=True
        )
    elif len(messages) > 1:
        raise UsageError(
            "A prompt is a chat of several messages, and this model has no chat template: give the "
            "text of each prompt instead."
        )
    else:
        text = messages[0].content
        # Text that a model was sent may begin with the token that the tokenizer would add again.
        begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        encoded = tokenizer(text, add_special_tokens=not begun)
    return tuple(encoded["input_ids"])


def check_lengths(
    prompts: Sequence[tuple[int, ...]], max_new_tokens: int, context: int | None
) -> int:
    """Tokens of the longest request, prompt and completion together.

    Raises UsageError, which names the prompt, if a request exceeds the model's `context` (tokens;
    None if unknown).
    """
    longest = 0
    for number, token_ids in enumerate(prompts, start=1):
        needed = len(token_ids) + max_new_tokens
        longest = max(longest, needed)
        if context is not None and needed > context:
            raise UsageError(
                f"Prompt {number} has {count(len(token_ids), 'token')}; with {max_new_tokens} new "
                f"ones it exceeds the model's context of {context}: shorten it or lower "
                "`max_new_tokens`."
            )
    return longest
