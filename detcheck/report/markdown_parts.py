"""The parts that a Markdown report is made of: code, fences, tables and folds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from detcheck.text import escape_markdown, one_line


def code(text: str, limit: int = 200) -> str:
    """Untrusted text on one line as inline code, in which nothing is markup."""
    return f"<code>{escape_markdown(one_line(text, limit))}</code>"


def fenced(text: str, language: str = "") -> str:
    """`text` in a fence longer than any run of backticks in it, hidden characters shown."""
    lines = "\n".join(one_line(line) for line in text.split("\n"))
    longest = max((len(run) for run in re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{lines}\n{fence}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: bool = False) -> str:
    rule = "---:" if numeric else "---"
    lines = [headings, [rule] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
