"""Prompts from a file: `.txt` holds one a line, `.jsonl` a string or `{"prompt": …}` a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detcheck.errors import UsageError

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson")
"""Suffixes of files that hold one JSON value a line."""
OTHER_DATA = (
    *(".json", ".json5", ".csv", ".tsv", ".psv", ".yaml", ".yml", ".toml", ".xml", ".html", ".htm"),
    *(".parquet", ".arrow", ".feather", ".orc", ".avro", ".sqlite", ".sqlite3", ".db", ".h5"),
    *(".xls", ".xlsx", ".ods", ".doc", ".docx", ".odt", ".rtf", ".pdf", ".pickle", ".pkl", ".pt"),
    *(".npy", ".npz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".lz4"),
)
"""Suffixes of files whose lines are no prompts; asking them literally would be a mistake."""

NumberedPrompt = tuple[int, str]
"""(line number from 1, prompt)."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in `path`, in order; blank lines are skipped.

    Raises UsageError if the file is missing, empty, of another format, or broken, or if it holds
    a prompt twice. The message names the line.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_DATA:
        raise UsageError(
            f"{path} is neither text nor JSON lines: write one prompt a line as .txt, or one "
            '{"prompt": "…"} a line as .jsonl.'
        )
    # Only line feeds end a line: JSON strings may hold the other characters that splitlines() cuts.
    lines = [line.strip() for line in _text(path).split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not numbered:
        raise UsageError(f"{path} holds no prompts: write one a line.")
    if suffix in JSON_LINES:
        numbered = [(number, _prompt(path, number, line)) for number, line in numbered]
    else:
        _refuse_json(path, numbered)
    _refuse_duplicates(path, numbered)
    return tuple(prompt for _, prompt in numbered)


def check_text(prompt: str, name: str) -> str:
    """Return `prompt`; raise UsageError, naming it `name`, if it has lone surrogates."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not valid Unicode text: write it as UTF-8.") from error
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
    """The prompt in one JSON line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} line {number} is not valid JSON ({error}).") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f'{path} line {number} is neither a string nor {{"prompt": "…"}}.')
    return check_text(prompt, f"{path} line {number}")


def _refuse_json(path: Path, numbered: Sequence[NumberedPrompt]) -> None:
    """Raise UsageError if every line of a text file is a JSON object with a prompt in it."""
    if all(_holds_prompt(line) for _, line in numbered):
        raise UsageError(
            f"{path} line {numbered[0][0]} is a JSON object that holds a prompt: give the file a "
            "name that ends in .jsonl, so that the prompt alone is asked."
        )


def _holds_prompt(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("prompt"), str)


def _refuse_duplicates(path: Path, numbered: Sequence[NumberedPrompt]) -> None:
    first_lines: dict[str, int] = {}
    for number, prompt in numbered:
        first = first_lines.setdefault(prompt, number)
        if first != number:
            raise UsageError(f"{path} lines {first} and {number} are the same prompt: drop one.")
