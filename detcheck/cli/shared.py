"""Options that several commands have, stated once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from detcheck.budget import Budget

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Hub id or folder; with --endpoint the served name. [default: the embedded "
        "SmolLM2-135M-Instruct; with --endpoint the only model that is served]",
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="What to ask; repeatable. [default: Tell me about Richard Feynman]",
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Prompts from a file: .txt, .jsonl, .ndjson, .csv, .tsv, a samples file of "
        "lm-evaluation-harness, or - for stdin. They may have answers, chats and ids.",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Environment variable with the endpoint's API key; never written or shown.",
    ),
]
HeaderOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LINE",
        help="'Name: value' or 'Name: env:VARIABLE' to send to the endpoint; repeatable.",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        metavar="S", help="Seconds that a request to an endpoint may take. [default: 1800]"
    ),
]
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
