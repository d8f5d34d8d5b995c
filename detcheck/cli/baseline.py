"""`detcheck baseline`: accept the answers of a run, in a small file to commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcheck.cli.shared import AsJson
from detcheck.errors import UsageError

if TYPE_CHECKING:
    from detcheck.gate.accept import Acceptance

DEFAULT_FILE = "detcheck-baseline.json"


def baseline_command(
    action: Annotated[str, typer.Argument(metavar="update", help="The only action.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run whose answers are accepted.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Baseline file, new or to be brought up to date. [default: the baseline of the "
            f"settings file, else {DEFAULT_FILE}]",
        ),
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--kernels",
            metavar="K",
            help="Kernels whose answers are accepted, comma-separated. [default: as for gate]",
        ),
    ] = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Keep the answers that were accepted, beside the run's."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the changes and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Accept the answers of a run, in a small file to commit.

    `detcheck gate RUN --baseline FILE` then fails if an answer changes. Prompts of the file that
    the run did not ask stay in it. Each change is shown in words.

    Exit codes: 0 written, 2 usage.
    """
    from detcheck.cli.gate import load_analysis
    from detcheck.gate.accept import accept
    from detcheck.gate.baseline import read_baseline, write_baseline
    from detcheck.gate.options import GateOptions

    if action != "update":
        raise UsageError(f"Unknown action {action!r}: the only one is update.")
    options = GateOptions(kernels=kernels)
    file = output or _configured() or Path(DEFAULT_FILE)
    if file.is_dir():
        raise UsageError(f"{file} is a folder: name a file by --output.")
    analysis = load_analysis(run)
    existing = read_baseline(file) if file.exists() else None
    chosen = options.kernels_of(analysis.run.experiment.kernels)
    accepted = accept(analysis, chosen, existing, add=add)
    if not dry_run:
        write_baseline(accepted.baseline, file)
    _print_json(accepted, file, written=not dry_run) if as_json else _print(accepted, file, dry_run)


def _configured() -> Path | None:
    """The baseline that the settings file names, if it is no run."""
    from detcheck.cli.settings import find_settings, name_settings

    found = find_settings(holding="gate")
    path: Path | None = found.section("gate").get("baseline")
    if path is None or path.is_dir():
        return None
    name_settings(found, "gate")
    return path


def _print(accepted: Acceptance, file: Path, dry_run: bool) -> None:
    from detcheck.cli.console import print_line, stderr
    from detcheck.text import count

    for change in accepted.changes:
        print_line(change)
    kept = f", {count(accepted.kept, 'prompt')} not asked and kept" if accepted.kept else ""
    changed = count(len(accepted.changes), "prompt")
    print_line(f"{changed} changed, {accepted.same} as before{kept}")
    if dry_run:
        print_line("nothing was written: --dry-run", console=stderr)
    else:
        print_line(f"written to {file}; commit it", console=stderr)
        print_line(f"hold a run to it: detcheck gate RUN --baseline {file}", console=stderr)


def _print_json(accepted: Acceptance, file: Path, *, written: bool) -> None:
    from detcheck.cli.console import print_json

    print_json(
        {
            "file": str(file),
            "written": written,
            "changes": accepted.changes,
            "same": accepted.same,
            "kept": accepted.kept,
        }
    )
