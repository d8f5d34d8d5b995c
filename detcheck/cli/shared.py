"""Options that several commands have, stated once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def kept_in(files: str) -> Any:
    """The option `-o` of a command that keeps `files` in a folder."""
    text = f"Keep {files} there; in a run directory, its report shows it."
    return typer.Option("-o", "--out", metavar="DIR", help=text)
