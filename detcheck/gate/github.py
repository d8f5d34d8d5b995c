"""A verdict on the summary page of a GitHub Actions job."""

from __future__ import annotations

import os
from pathlib import Path

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.errors import UsageError
from detcheck.gate.verdict import PASS, Verdict
from detcheck.text import escape_markdown, quoted

VARIABLE = "GITHUB_STEP_SUMMARY"
MARKS = {PASS: "✅ pass", FAIL: "❌ fail", INCONCLUSIVE: "⚠️ inconclusive"}
MOST_OF_A_RULE = 100
"""Findings of one rule that are listed, notes excepted; GitHub cuts a summary off at 1 MiB."""


def summary_path() -> Path:
    """The file that GitHub Actions shows. Raises UsageError outside of GitHub Actions."""
    path = os.environ.get(VARIABLE)
    if not path:
        raise UsageError(
            f"`github_summary` needs {VARIABLE}, which GitHub Actions sets: leave it out here."
        )
    return Path(path)


def append_summary(verdict: Verdict, path: Path, first_op: str | None = None) -> None:
    """Append the verdict to `path`. Raises UsageError if that is not possible.

    For `first_op` see `summary_markdown`.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(summary_markdown(verdict, first_op))
    except OSError as error:
        raise UsageError(
            f"{VARIABLE} cannot be written ({error.strerror}): leave out `github_summary`."
        ) from error


def write_summary(verdict: Verdict, path: Path, first_op: str | None = None) -> None:
    """Write the same to a file of its own. Raises UsageError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(summary_markdown(verdict, first_op), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): choose another file by `summary`."
        ) from error


def summary_markdown(verdict: Verdict, first_op: str | None = None) -> str:
    """The verdict as Markdown, in which prompts and answers can be nothing but text.

    `first_op` is a sentence on the first op that differs; None leaves it out.
    """
    lines = [
        f"### detcheck: {MARKS[verdict.value]}",
        "",
        "| prompt | kernels | completions | distinct | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for judged in verdict.groups:
        group = judged.group
        prompt = escape_markdown(quoted(group.prompt, 60))
        kernels = escape_markdown(group.kernels)
        lines.append(
            f"| {prompt} | {kernels} | {group.completions} | {group.distinct_within_seed} "
            f"| {MARKS[judged.value]} |"
        )
    lines += ["", f"{verdict.summary}.", ""]
    lines += [f"- {escape_markdown(first_op)}"] if first_op else []
    for kind in verdict.folded(MOST_OF_A_RULE):
        lines += [f"- {escape_markdown(reason)}" for reason in kind.reasons]
        lines += [f"- … {kind.more} more of {escape_markdown(kind.rule)}"] if kind.more else []
    lines += ["", "| judged | |", "|---|---|"]
    lines += [f"| {name} | {escape_markdown(text)} |" for name, text in verdict.judged.facts()]
    return "\n".join([*lines, "", ""])
