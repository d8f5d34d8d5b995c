"""A verdict on the summary page of a GitHub Actions job."""

from __future__ import annotations

import os
from pathlib import Path

from detcheck.errors import UsageError
from detcheck.gate.verdict import FAIL, INCONCLUSIVE, PASS, Verdict
from detcheck.text import escape_markdown, quoted

VARIABLE = "GITHUB_STEP_SUMMARY"
MARKS = {PASS: "✅ pass", FAIL: "❌ fail", INCONCLUSIVE: "⚠️ inconclusive"}


def summary_path() -> Path:
    """The file that GitHub Actions shows; raises UsageError outside of it."""
    path = os.environ.get(VARIABLE)
    if not path:
        raise UsageError(
            f"--github-summary needs {VARIABLE}, which GitHub Actions sets: leave it out here."
        )
    return Path(path)


def append_summary(verdict: Verdict, path: Path) -> None:
    """Append the verdict to `path`; raises UsageError where that is not possible."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(summary_markdown(verdict))
    except OSError as error:
        raise UsageError(
            f"{VARIABLE} cannot be written ({error.strerror}): leave out --github-summary."
        ) from error


def summary_markdown(verdict: Verdict) -> str:
    """The verdict as Markdown in which prompts and answers can be nothing but text."""
    lines = [
        f"### detcheck: {MARKS[verdict.value]}",
        "",
        "| prompt | kernels | completions | distinct | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for case in verdict.cases:
        group = case.group
        prompt = escape_markdown(quoted(group.prompt, 60))
        kernels = escape_markdown(group.kernels)
        lines.append(
            f"| {prompt} | {kernels} | {group.completions} | {group.distinct} "
            f"| {MARKS[case.verdict]} |"
        )
    lines += ["", *(f"- {escape_markdown(reason)}" for reason in verdict.reasons), "", ""]
    return "\n".join(lines)
