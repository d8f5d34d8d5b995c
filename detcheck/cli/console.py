"""The two consoles: stdout for data, stderr for progress and messages.

Neither reads markup or emoji codes in what it prints, so that a prompt such as `[bold]` or
`:smile:` shows as itself; style with `rich.text.Text` or the `style` argument. Both honour
NO_COLOR, and progress bars on `stderr` vanish without a terminal.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from detcheck.text import one_line


class _Console(Console):
    """A console that leaves a closed pipe to `main`, which knows the exit code."""

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


def print_json(data: Any) -> None:
    """Print `data` on stdout as JSON in ASCII: valid in any encoding, harmless on a terminal.

    Takes dataclasses, numpy scalars and arrays too; a number that is not finite becomes null.
    """
    sys.stdout.write(json_text(data))


def json_text(data: Any) -> str:
    """`data` as `print_json` prints it."""
    return json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"


def keep_probe(data: Any, name: str, folder: Path) -> None:
    """Write what a probe found into `folder`, with its figure, and say where."""
    from detcheck.report.write import write_probe

    for path in write_probe(json_text(data), name, folder):
        print_line(f"kept in {path}", console=stderr)


def _plain(value: Any) -> Any:
    """`value` in types that JSON has."""
    plain: Any = value
    if isinstance(value, float):
        plain = value if math.isfinite(value) else None
    elif isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        plain = [_plain(item) for item in value]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    elif hasattr(value, "tolist"):  # numpy
        plain = _plain(value.tolist())
    elif not (value is None or isinstance(value, str | int)):
        plain = str(value)
    return plain
