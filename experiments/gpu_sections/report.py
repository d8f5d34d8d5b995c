"""What `gpu.py` writes: everything as JSON, and a page of Markdown. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Report = dict[str, Any]
"""`environment`, `date`, `command`, `compiling_s`, `plan`, and `sections`: name to result, with
lines of the table."""


def write(report: Report, folder: Path) -> None:
    """Write what there is so far; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("gpu.json", json.dumps(report, indent=1)),
        ("table.md", "\n".join(table(report))),
    ):
        temporary = folder / f"{name}.part"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / name)


def table(report: Report) -> list[str]:
    """The report in a page of Markdown."""
    environment = report["environment"]
    gpu, packages = environment.get("gpu") or {}, environment.get("packages") or {}
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "triton", "transformers")
        if name in packages
    )
    lines = ["**dry run: nothing was measured**", ""] if report.get("dry_run") else []
    lines += [
        f"**{gpu.get('name')}**, driver {gpu.get('driver')}, CUDA {gpu.get('cuda')}, {versions}",
        "",
        f"{report.get('date', '')}, by `{report.get('command', 'python experiments/gpu.py')}`, "
        f"compiling ahead {report.get('compiling_s', 0):.0f} s",
        "",
    ]
    for name, result in report["sections"].items():
        lines += [f"### {name} ({remarks(result)})", "", *result["table"], ""]
        if result.get("failures"):
            lines += [f"- FAILED {failure}" for failure in result["failures"][:20]] + [""]
    return lines


def remarks(result: dict[str, Any]) -> str:
    """How long a section took, and what is to be known of its result."""
    parts = [f"{result.get('elapsed_s', 0)} s"]
    parts += ["plain kernels"] if result.get("plain") else []
    parts += ["the time was not enough for all of it"] if result.get("unfinished") else []
    host = len(result.get("uncaptured", ()))
    parts += [f"{host} times include the host's"] if host else []
    return ", ".join(parts)


def failed(report: Report) -> bool:
    """Whether a section could not be measured, or found a failure; or there is no section."""
    results = report["sections"].values()
    return not results or any("error" in result or result.get("failures") for result in results)
