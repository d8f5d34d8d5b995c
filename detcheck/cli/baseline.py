"""`detcheck baseline`: accept the answers of a run, in a small file to commit."""

from __future__ import annotations

import sys
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
    review: Annotated[
        bool, typer.Option("--review", help="Show each change in words, and ask before it counts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Accept the answers of a run, in a small file to commit.

    `detcheck gate RUN --baseline FILE` then fails if an answer changes. Prompts of the file that
    the run did not ask stay in it. Each change is shown in words.

    Exit codes: 0 written, 2 usage.
    """
    from detcheck.gate.accept import accept
    from detcheck.gate.baseline import read_baseline, write_baseline
    from detcheck.gate.files import load_analysis
    from detcheck.gate.options import GateOptions

    if action != "update":
        raise UsageError(f"Unknown action {action!r}: the only one is update.")
    if review and as_json:
        raise UsageError("--review asks at the terminal: leave --json out, or --review.")
    options = GateOptions(kernels=kernels)
    file = output or _configured() or Path(DEFAULT_FILE)
    if file.is_dir():
        raise UsageError(f"{file} is a folder: name a file by --output.")
    analysis = load_analysis(run)
    existing = read_baseline(file) if file.exists() else None
    chosen = options.kernels_of(analysis.run.experiment.kernels)
    accepted = accept(analysis, chosen, existing, add=add, review=_ask if review else None)
    reason = "--dry-run" if dry_run else _nothing_accepted(accepted)
    if reason is None:
        write_baseline(accepted.baseline, file)
    if as_json:
        _print_json(accepted, file, written=reason is None)
    else:
        _print(accepted, file, reason, changes=() if review else accepted.changes)


def _ask(change: str) -> bool:
    """True if the user accepts the change that `change` describes."""
    from detcheck.cli.console import print_line

    print_line(change)
    while True:
        print("accept? [y/N]: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            raise UsageError(
                "--review needs an answer to each change, y or n: nothing was written. Without a "
                "terminal, use --dry-run."
            )
        reply = line.strip().lower()
        if reply in ("y", "yes", "n", "no", ""):
            return reply in ("y", "yes")


def _nothing_accepted(accepted: Acceptance) -> str | None:
    """Why the file stays as it is after a review; None if it is to be written."""
    if accepted.refused and not accepted.changes:
        return "no change was accepted"
    return None


def _configured() -> Path | None:
    """The baseline that the settings file names, if it is no run."""
    from detcheck.cli.settings import find_settings, name_settings

    found = find_settings(holding=("gate",))
    path: Path | None = found.section("gate").get("baseline")
    if path is None or path.is_dir():
        return None
    name_settings(found, "gate")
    return path


def _print(
    accepted: Acceptance, file: Path, unwritten: str | None, changes: tuple[str, ...]
) -> None:
    """Print `changes`, the counts and the file; `unwritten` says why nothing was written."""
    from detcheck.cli.console import print_line, stderr
    from detcheck.text import count

    for change in changes:
        print_line(change)
    kept = f", {count(accepted.kept, 'prompt')} not asked and kept" if accepted.kept else ""
    kept += f", {accepted.refused} refused" if accepted.refused else ""
    print_line(f"{count(accepted.changed, 'prompt')} changed, {accepted.same} as before{kept}")
    if unwritten is not None:
        print_line(f"nothing was written: {unwritten}", console=stderr)
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
            "changed": accepted.changed,
            "same": accepted.same,
            "kept": accepted.kept,
        }
    )
