"""`detcheck report`: the results of runs as HTML, Markdown, CSV and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run directories, or folders of `detcheck mismatch`."
        ),
    ],
    format: Annotated[
        str, typer.Option("--format", metavar="LIST", help="Any of html,md,csv.")
    ] = "html,md,csv",
    answer: Annotated[
        str | None,
        typer.Option(
            metavar="PARSER",
            help="Parser of answers, instead of the run's own: number, letter, last-line, exact, "
            "regex:PATTERN or json:PATH.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder to write to; default: each run's own directory.",
        ),
    ] = None,
) -> None:
    """Write the results of each RUN: report.html, report.md, CSV tables and figures.

    Prints the path of every file written. A report can always be made again from its run.
    """  # fmt: skip
    from detcheck.analysis import analyse
    from detcheck.parsers import answer_parser
    from detcheck.report.write import parse_formats, write_report
    from detcheck.rundir import load

    formats = parse_formats(format)
    kept = [path for path in runs if (path / "mismatch.json").is_file()]
    for path in kept:
        for written in _write_mismatch(path, path if out is None else _folder(out, path.name, 2)):
            typer.echo(written)
    runs = [path for path in runs if path not in kept]
    if answer is not None:
        answer_parser(answer)
    analyses = [analyse(load(path)) for path in runs]
    for path, analysis in zip(runs, analyses, strict=True):
        folder = path if out is None else _folder(out, analysis.run.run_id, len(runs))
        for written in write_report(analysis, folder, formats, answer):
            typer.echo(written)


def _write_mismatch(path: Path, folder: Path) -> list[Path]:
    """Write the page of a measurement of `detcheck mismatch`, and its figures."""
    from detcheck.analysis.mismatch.results import load_mismatch
    from detcheck.report.files import write_files
    from detcheck.report.mismatch_page import mismatch_files

    return write_files(folder, mismatch_files(load_mismatch(path)), "The report")


def _folder(out: Path, run_id: str, num_runs: int) -> Path:
    """`out` itself for one run; a folder in it for each of several runs."""
    return out if num_runs == 1 else out / Path(run_id).name
