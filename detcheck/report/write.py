"""Writes the report of a run: every format that was asked for, figures drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detcheck.analysis.results import Analysis
from detcheck.errors import UsageError
from detcheck.report.files import write_files

if TYPE_CHECKING:
    from detcheck.report.figure_style import Drawing
    from detcheck.report.view import ReportView

FORMATS = ("html", "md", "csv")
FIGURES_FOLDER = "figures"


def parse_formats(text: str) -> tuple[str, ...]:
    """`html,md` as a tuple; raises UsageError if one is not known, or none is given."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"Unknown format {name!r}: choose from {', '.join(FORMATS)}.")
    if not formats:
        raise UsageError(f"Give at least one format of {', '.join(FORMATS)}.")
    return formats


def write_report(
    analysis: Analysis, folder: Path, formats: Sequence[str], answer: str | None = None
) -> list[Path]:
    """Write the report into `folder`; returns the files written, the one to open first.

    `answer` names the parser of answers; by default the one that the experiment names, if any.
    Raises StorageError if the folder cannot be written.
    """
    return write_files(folder, render_files(analysis, formats, folder, answer), "The report")


def render_files(
    analysis: Analysis,
    formats: Sequence[str],
    folder: Path | None = None,
    answer: str | None = None,
) -> dict[str, str]:
    """The text of every file by its name relative to the report's folder.

    The page links the run's files as seen from `folder`; None for the run's own.
    """
    contents: dict[str, str] = {}
    tables: dict[str, str] = {}
    if "csv" in formats:
        from detcheck.report.csv_export import csv_files

        tables |= csv_files(analysis, answer)
    if "html" in formats or "md" in formats:
        from detcheck.report.view import build_view

        view = build_view(analysis, answer)
        contents = _documents(analysis, view, formats, folder or analysis.run.path, tuple(tables))
    return contents | tables


def _documents(
    analysis: Analysis,
    view: ReportView,
    formats: Sequence[str],
    folder: Path,
    tables: Sequence[str],
) -> dict[str, str]:
    from detcheck.report.figures import draw_all
    from detcheck.report.probe_figures import probe_drawings
    from detcheck.report.reproduce import PROMPTS_FILE, prompts_file

    drawings = draw_all(analysis, [row.prompt_index for row in view.rows])
    probes = probe_drawings(analysis.run.path)
    contents: dict[str, str] = {}
    prompts = prompts_file(analysis.run.experiment)
    if "html" in formats:
        from detcheck.report import html
        from detcheck.report.raw_files import raw_files

        written = [*tables, *(["report.md"] if "md" in formats else [])]
        written += [PROMPTS_FILE] if prompts is not None else []
        linked = raw_files(analysis.run.path, folder, written)
        contents["report.html"] = html.render(view, drawings, probes, linked)
    if "md" in formats:
        from detcheck.report import markdown

        names = {
            prompt: [_figure_name(drawing) for drawing in drawn]
            for prompt, drawn in drawings.items()
        }
        probed = [_figure_name(drawing) for drawing in probes]
        contents["report.md"] = markdown.render(view, names, probed)
    if prompts is not None:
        contents[PROMPTS_FILE] = prompts
    for drawn in (*drawings.values(), probes):
        for drawing in drawn:
            contents[_figure_name(drawing)] = drawing.standalone()
    return contents


def _figure_name(drawing: Drawing) -> str:
    return f"{FIGURES_FOLDER}/{drawing.name}.svg"


def write_probe(data: str, name: str, folder: Path) -> list[Path]:
    """Write the results of a probe, as JSON `name`, and their figure; returns the files written.

    If `folder` is a run directory, its report shows the figure from then on. Raises StorageError
    if the folder cannot be written.
    """
    from detcheck.report.probe_figures import probe_drawings

    written = write_files(folder, {name: data}, name)
    figures = {_figure_name(one): one.standalone() for one in probe_drawings(folder)}
    return [*written, *write_files(folder, figures, name)]
