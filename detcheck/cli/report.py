"""`detcheck report`: the results of runs as HTML, Markdown, CSV and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
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
    if answer is not None:
        answer_parser(answer)
    analyses = [analyse(load(path)) for path in runs]
    for path, analysis in zip(runs, analyses, strict=True):
        folder = path if out is None else _folder(out, analysis.run.run_id, len(runs))
        for written in write_report(analysis, folder, formats, answer):
            typer.echo(written)


def _folder(out: Path, run_id: str, num_runs: int) -> Path:
    """`out` itself for one run; a folder in it for each of several runs."""
    return out if num_runs == 1 else out / Path(run_id).name
