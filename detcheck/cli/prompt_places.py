"""The line of each prompt, in the experiment file or in its prompts file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from detcheck.config import Config, section_of
from detcheck.prompts import read_prompts

STAND_IN = "\ue000"
"""The first character of the strings that stand for prompts while their lines are looked for."""


def prompt_places(settings: Config) -> dict[str, tuple[Path, int]]:
    """(file, line from 1) of each prompt that `settings` ask, by its text.

    A prompt is left out if its line cannot be found for certain, such as one that is written as a
    string of several lines. Raises UsageError as `read_prompts` does.
    """
    if settings.path is None:
        return {}
    asked = settings.section("experiment")
    places = {
        prompt: (settings.path, line)
        for prompt, line in _lines(settings.path, asked.get("prompts", ()))
    }
    file = asked.get("prompts_file")
    if file is not None:
        read = read_prompts(file)
        places |= {
            prompt: (file, line) for prompt, line in zip(read.prompts, read.lines, strict=True)
        }
    return places


def _lines(path: Path, prompts: Collection[str]) -> Iterator[tuple[str, int]]:
    """(prompt, line) of the prompts that a settings file holds as strings of one line.

    All strings that may be prompts are exchanged for numbered ones. The list of prompts, read from
    the changed text, then says which of them were prompts, and not comments or other keys.
    """
    spelt = {form: prompt for prompt in prompts for form in _spellings(prompt)}
    if not spelt:
        return
    text = path.read_bytes().decode("utf-8")
    found: dict[str, tuple[str, int]] = {}

    def exchange(match: re.Match[str]) -> str:
        number = f"{STAND_IN}{len(found)}"
        found[number] = spelt[match[0]], text.count("\n", 0, match.start()) + 1
        return f'"{number}"'

    changed = re.sub("|".join(map(re.escape, spelt)), exchange, text)
    for before, after in zip(prompts, _prompts_in(path, changed), strict=False):
        prompt, line = found.get(str(after), (None, 0))
        if prompt == before:
            yield before, line


def _spellings(prompt: str) -> Iterator[str]:
    """A prompt as the strings of one line that TOML has: basic, and literal."""
    yield json.dumps(prompt, ensure_ascii=False)
    if not set(prompt) & set("'\n\r"):
        yield f"'{prompt}'"


def _prompts_in(path: Path, text: str) -> list[Any]:
    """The prompts of a settings file with this text; empty if it is no TOML any more."""
    try:
        document: Mapping[str, Any] = tomllib.loads(text)
    except ValueError:
        return []
    prompts = section_of(path, document, "experiment").get("prompts", [])
    return prompts if isinstance(prompts, list) else []
