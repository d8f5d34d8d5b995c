"""What `gpu.py` writes: everything as JSON, and a page of Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Report = dict[str, Any]
"""`environment`, `compiling`, and `sections`: name to result, with its lines of the table."""


def write(report: Report, folder: Path) -> None:
    """Write what there is so far."""
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
    lines = [f"**{gpu.get('name')}**, CUDA {gpu.get('cuda')}, {versions}", ""]
    lines += [f"compiling ahead: {report.get('compiling_s', 0):.0f} s", ""]
    for name, result in report["sections"].items():
        plain = ", plain kernels" if result.get("plain") else ""
        lines += [f"### {name} ({result.get('elapsed_s', 0)} s{plain})", *result["table"], ""]
        if result.get("failures"):
            lines += [f"- FAILED {failure}" for failure in result["failures"][:20]] + [""]
    return lines


def failed(report: Report) -> bool:
    """Whether a section could not be measured, or found what it must not; or there is none."""
    results = report["sections"].values()
    return not results or any("error" in result or result.get("failures") for result in results)
