"""Fenced code blocks of Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
INLINE = re.compile(r"`((?:detcheck|make|python) [^`…]+)`")
FENCE = re.compile(r"^( *)```(\w+)?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block, with its place for messages."""

    place: str
    """File and line, such as `README.md:12`."""
    language: str
    text: str


def pages() -> list[Path]:
    """Every page that a reader of the project sees."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    return [*top, ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in any of `languages`."""
    return [block for path in pages() for block in _blocks(path) if block.language in languages]


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(f"{path.relative_to(ROOT)}:{line}", match[2] or "", dedent(match[3]))


def commands(block: Block) -> Iterator[str]:
    """The command lines of a shell block, without comments, prompts and output."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        for command in re.split(r" && | ; | \| ", re.sub(r"(^|\s)#.*$", "", line)):
            if command.strip():
                yield command.strip()


def mentions() -> Iterator[tuple[str, str]]:
    """(page, command) of every command that stands within a sentence or a table."""
    for path in pages():
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for mention in dict.fromkeys(INLINE.findall(text)):
            for command in mention.split(" && "):
                if command.split()[1].islower():  # not `detcheck COMMAND`
                    yield str(path.relative_to(ROOT)), command
