"""Prompts: the questions of an experiment, with what else is known of each, read from files."""

from detcheck.prompts.item import ChatMessage, PromptItem, PromptSet, chat_text, check_text
from detcheck.prompts.read import read_prompts

__all__ = ["ChatMessage", "PromptItem", "PromptSet", "chat_text", "check_text", "read_prompts"]
