"""Writes the report of a run: every format that was asked for, figures drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detcheck.analysis.results import Analysis
from detcheck.errors import StorageError, UsageError

FORMATS = ("html", "md", "csv")
FIGURES_FOLDER = "figures"


def parse_formats(text: str) -> tuple[str, ...]:
    """`html,md` as a tuple; raises UsageError where one is not known."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"Unknown format {name!r}: choose from {', '.join(FORMATS)}.")
    if not formats:
        raise UsageError(f"Give at least one format of {', '.join(FORMATS)}.")
    return formats


def write_report(analysis: Analysis, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the report into `folder`; returns the files written, the one to open first.

    Raises StorageError where the folder cannot be written.
    """
    contents = render_files(analysis, formats)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            # Lone surrogates are shown by name long before this; never fail on one that is not.
            path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"The report cannot be written to {folder} ({reason}): choose another --out."
        ) from error
    return [folder / name for name in contents]


def render_files(analysis: Analysis, formats: Sequence[str]) -> dict[str, str]:
    """The text of every file by its name relative to the report's folder."""
    contents: dict[str, str] = {}
    if "html" in formats or "md" in formats:
        contents |= _documents(analysis, formats)
    if "csv" in formats:
        from detcheck.report import csv_export

        contents["conditions.csv"] = csv_export.conditions_csv(analysis)
        contents["variants.csv"] = csv_export.variants_csv(analysis)
    return contents


def _documents(analysis: Analysis, formats: Sequence[str]) -> dict[str, str]:
    from detcheck.report.figures import draw_all

    drawings = draw_all(analysis)
    contents: dict[str, str] = {}
    if "html" in formats:
        from detcheck.report import html

        contents["report.html"] = html.render(analysis, drawings)
    if "md" in formats:
        from detcheck.report import markdown

        names = {
            prompt: [f"{FIGURES_FOLDER}/{drawing.name}.svg" for drawing in drawn]
            for prompt, drawn in drawings.items()
        }
        contents["report.md"] = markdown.render(analysis, names)
    for drawn in drawings.values():
        for drawing in drawn:
            contents[f"{FIGURES_FOLDER}/{drawing.name}.svg"] = drawing.standalone()
    return contents
