"""Options that several commands have, stated once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from detcheck.budget import Budget

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def kept_in(files: str) -> Any:
    """The option `-o` of a command that keeps `files` in a folder."""
    text = f"Keep {files} there; in a run directory, its report shows it."
    return typer.Option("-o", "--out", metavar="DIR", help=text)


BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="DURATION",
        help="Time that the run may take, such as 10m. Every prompt and load first gets the least "
        "that a verdict needs, then those that have most to tell get more. Prompts that were not "
        "reached make the verdict inconclusive; --resume goes on.",
    ),
]


def budget_of(text: str | None, min_comparisons: int | None = None) -> Budget | None:
    """The budget that `--budget` gives. Raises UsageError if it is no duration."""
    if text is None:
        return None
    from detcheck.budget import Budget
    from detcheck.evidence import MIN_COMPARISONS
    from detcheck.gate.options import parse_duration

    seconds = parse_duration(text, "budget").total_seconds()
    return Budget(seconds, min_comparisons or MIN_COMPARISONS)
