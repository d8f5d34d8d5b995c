"""Prompts from a file: `.txt` has one a line, `.jsonl` a string or `{"prompt": …}` a line."""

from __future__ import annotations

import json
from pathlib import Path

from detcheck.errors import UsageError


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in `path`, in order; blank lines are skipped.

    Raises UsageError, naming the line, where the file is missing, empty or broken.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UsageError(f"{path} is not .jsonl or .txt: write one prompt a line.")
    # Only line feeds end a line: JSON strings may hold the other characters that splitlines() cuts.
    lines = [line.strip() for line in _text(path).split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not numbered:
        raise UsageError(f"{path} holds no prompts: write one a line.")
    if suffix != ".jsonl":
        return tuple(line for _, line in numbered)
    return tuple(_prompt(path, number, line) for number, line in numbered)


def check_text(prompt: str, where: str) -> str:
    """`prompt` itself; raises UsageError where it holds halves of characters (bytes not UTF-8)."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not valid Unicode text: write it as UTF-8.") from error
    return prompt


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"There is no prompts file {path}: check the path.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {line} is not UTF-8 text: save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} line {number} is not valid JSON ({error}).") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f'{path} line {number} is neither a string nor {{"prompt": "…"}}.')
    return check_text(prompt, f"{path} line {number}")
