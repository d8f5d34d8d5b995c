"""The files of a reproduction: the script, the environment, and the text of an issue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from detcheck.environment import settings
from detcheck.errors import StorageError, UsageError
from detcheck.report.files import write_files
from detcheck.report.markdown_parts import code, fenced
from detcheck.rundir.folder import check_vacant
from detcheck.text import one_line

SCRIPT = "repro.py"
INPUTS = "inputs.pt"
ENVIRONMENT = "environment.txt"
ISSUE = "issue.md"


def check_folder(folder: Path) -> None:
    """Raise UsageError if nothing can be written to `folder`, or files are there already."""
    try:
        check_vacant(folder)
    except UsageError as error:
        reason = str(error).split(": choose")[0]
        raise UsageError(f"{reason}: choose another `repro`.") from error


def write(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write texts by name into `folder`; returns their paths. Raises StorageError."""
    try:
        return write_files(folder, contents, "The reproduction")
    except StorageError as error:
        raise StorageError(str(error).replace("`out`", "`repro`")) from error


def render(template: str, **values: Any) -> str:
    """The text of one of the templates; all of `values` must be used to fill it."""
    return _templates().get_template(template).render(**values)


def environment_text(environment: Mapping[str, Any]) -> str:
    """The environment of a run, a setting a line."""
    lines = (f"{name}: {_shown(value)}" for name, value in settings(environment))
    return "\n".join(lines) + "\n"


def public_name(model: str | None) -> str:
    """A model's name without the path of a folder, which may name a person."""
    if not model:
        return "a model"
    is_folder = model.startswith(("/", ".", "~")) or Path(model).is_dir()
    return Path(model).resolve().name if is_folder else model


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _templates() -> Environment:
    """The templates, with filters for untrusted text: `code` and `fenced` for Markdown, and
    `in_docstring` for a script."""
    environment = Environment(
        loader=PackageLoader("detcheck.repro"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "fenced": fenced, "in_docstring": _in_docstring}
    return environment


def _code(text: str) -> str:
    """`text` as inline code: between backticks if it needs no escaping."""
    return f"`{text}`" if re.fullmatch(r"[\w ./:@+=()-]+", text) else code(text)


def _in_docstring(text: str) -> str:
    """`text` on one line, without the characters that have a meaning in a docstring."""
    return one_line(text).replace("\\", "/").replace('"', "'")
