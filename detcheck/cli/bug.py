"""A report of an error that detcheck did not expect, in a file that can be attached to an issue."""

from __future__ import annotations

import os
import platform
import re
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from detcheck import __version__

PACKAGES = ("torch", "transformers", "numpy", "pandas", "typer", "rich", "msgspec", "aiohttp")
SHORTEST_SECRET = 6
_SENSITIVE = re.compile(r"auth|key|token|secret|cookie|password|credential", re.IGNORECASE)
_HIDDEN_OPTIONS = ("--header",)
REDACTED = "[redacted]"


def write_report(error: Exception, args: Sequence[str]) -> Path | None:
    """Write versions, the command and the traceback to a new file; None if that fails.

    Values of headers, and of environment variables whose names look like secrets, are left out.
    """
    text = "\n".join(
        (
            f"detcheck {__version__}, Python {platform.python_version()}, {platform.platform()}",
            *_packages(),
            "",
            f"command: detcheck {shlex.join(_without_headers(args))}",
            "",
            "".join(traceback.format_exception(error)),
        )
    )
    try:
        handle, name = tempfile.mkstemp(prefix="detcheck-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_without_secrets(text))
    except OSError:
        return None
    return Path(name)


def _packages() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
    return found


def _without_headers(args: Sequence[str]) -> list[str]:
    shown: list[str] = []
    for arg in args:
        name, equals, _ = arg.partition("=")
        if shown and shown[-1] in _HIDDEN_OPTIONS:
            shown.append(REDACTED)
        elif equals and name in _HIDDEN_OPTIONS:
            shown.append(f"{name}={REDACTED}")
        else:
            shown.append(arg)
    return shown


def _without_secrets(text: str) -> str:
    secrets = {
        value
        for name, value in os.environ.items()
        if _SENSITIVE.search(name) and len(value) >= SHORTEST_SECRET
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text
