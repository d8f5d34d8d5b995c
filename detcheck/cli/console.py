"""The two consoles: stdout for data, stderr for progress and messages.

Neither interprets markup or emoji codes, so that a prompt such as `[bold]` or
`:smile:` shows as itself. Use `rich.text.Text` or the `style` argument for styles. Both honour
NO_COLOR, and progress bars on `stderr` vanish without a terminal.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from detcheck.text import one_line


class _Console(Console):
    """A console that leaves a closed pipe to `main`, which has the exit code for it."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  (rich calls this from its except clause)


stdout = _Console(markup=False, emoji=False, highlight=False)
"""Data: tables, verdicts, JSON."""
stderr = _Console(stderr=True, markup=False, emoji=False, highlight=False)
"""Progress, messages, warnings."""


def untrusted(text: str, style: str = "") -> Text:
    """`text` as one line that can do nothing to the terminal; for cells, columns and labels."""
    return Text(one_line(text), style=style)


def print_line(text: str, style: str = "", *, console: Console = stdout) -> None:
    """Print one line of untrusted text, left unwrapped so that it can be searched for."""
    console.print(untrusted(text, style), soft_wrap=True)


def print_wrapped(text: str, style: str = "", *, indent: int = 0) -> None:
    """Print a paragraph of untrusted text on stdout: on a terminal it is wrapped between words.

    Its later lines are indented by `indent` characters. Elsewhere it is one line, as by
    `print_line`.
    """
    if not stdout.is_terminal:
        print_line(text, style)
        return
    lines = textwrap.wrap(
        one_line(text),
        width=max(stdout.width, 2 * indent, 40),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
    for line in lines:
        print_line(line, style)


def print_json(data: Any) -> None:
    """Print `data` on stdout as JSON in ASCII: valid in any encoding, harmless on a terminal.

    Takes dataclasses, numpy scalars and arrays too; a number that is not finite becomes null.
    """
    sys.stdout.write(json_text(data))


def json_text(data: Any) -> str:
    """`data` as `print_json` prints it."""
    try:
        plain = json.loads(msgspec.json.encode(data, enc_hook=_plain))
    except UnicodeEncodeError:  # a lone surrogate, from an untrusted server
        plain = msgspec.to_builtins(data, enc_hook=_plain)
    return json.dumps(plain, indent=2) + "\n"


def keep_probe(data: Any, name: str, folder: Path) -> None:
    """Write a probe's result and its figure into `folder`, and print their paths."""
    from detcheck.report.write import write_probe

    for path in write_probe(json_text(data), name, folder):
        print_line(f"kept in {path}", console=stderr)


def _plain(value: Any) -> Any:
    """A value that JSON has no type for: arrays as lists, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
