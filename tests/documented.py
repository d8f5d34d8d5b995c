"""The columns of a table, read from the docstring of the function that makes it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getdoc
from typing import Any


def documented(function: Callable[..., Any]) -> dict[str, str]:
    """Column -> type, from the table in the docstring of `function`."""
    lines = (getdoc(function) or "").splitlines()
    _, first, last = (index for index, line in enumerate(lines) if line.startswith("===="))
    # A line that goes on with the meaning of the column above begins with spaces.
    rows = [line.split() for line in lines[first + 1 : last] if not line.startswith(" ")]
    return {name: dtype for name, dtype, *_ in rows}
