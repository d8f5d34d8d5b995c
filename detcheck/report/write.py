"""Writes the report of a run: every format that was asked for, figures drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detcheck.analysis.results import Analysis
from detcheck.errors import StorageError, UsageError

if TYPE_CHECKING:
    from detcheck.report.figure_style import Drawing

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
    from detcheck.report.probe_figures import probe_drawings

    drawings = draw_all(analysis)
    probes = probe_drawings(analysis.run.path)
    contents: dict[str, str] = {}
    if "html" in formats:
        from detcheck.report import html

        contents["report.html"] = html.render(analysis, drawings, probes)
    if "md" in formats:
        from detcheck.report import markdown

        names = {
            prompt: [_figure_name(drawing) for drawing in drawn]
            for prompt, drawn in drawings.items()
        }
        probed = [_figure_name(drawing) for drawing in probes]
        contents["report.md"] = markdown.render(analysis, names, probed)
    for drawn in (*drawings.values(), probes):
        for drawing in drawn:
            contents[_figure_name(drawing)] = drawing.standalone()
    return contents


def _figure_name(drawing: Drawing) -> str:
    return f"{FIGURES_FOLDER}/{drawing.name}.svg"


def write_probe(data: str, name: str, folder: Path) -> list[Path]:
    """Write what a probe found, as JSON `name`, and its figure; returns the files written.

    Where `folder` is a run directory, its report shows the figure from then on. Raises
    StorageError where the folder cannot be written.
    """
    from detcheck.report.probe_figures import probe_drawings

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data, encoding="utf-8")
        written = [folder / name]
        for drawing in probe_drawings(folder):
            path = folder / _figure_name(drawing)
            path.parent.mkdir(exist_ok=True)
            path.write_text(drawing.standalone(), encoding="utf-8")
            written.append(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{name} cannot be written to {folder} ({reason}): choose another --out."
        ) from error
    return written
