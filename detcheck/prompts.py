"""Prompts from a file: `.txt` has one a line, `.jsonl` a string or `{"prompt": …}` a line."""

from __future__ import annotations

import json
from pathlib import Path

from detcheck.errors import UsageError


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in `path`, in order; blank lines are skipped.

    Raises UsageError, naming the line, where the file is missing, empty or broken.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"There is no prompts file {path}: check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({error}).") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} holds no prompts: write one a line.")
    if path.suffix != ".jsonl":
        return tuple(line.strip() for _, line in lines)
    return tuple(_prompt(path, number, line) for number, line in lines)


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path} line {number} is not valid JSON ({error}).") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f'{path} line {number} is neither a string nor {{"prompt": "…"}}.')
    return prompt
