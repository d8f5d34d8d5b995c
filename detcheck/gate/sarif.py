"""A verdict as SARIF 2.1.0, which code-scanning services show beside the changed lines.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detcheck import __version__
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, Finding
from detcheck.errors import UsageError
from detcheck.gate.verdict import Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {FAIL: "error", INCONCLUSIVE: "warning"}
"""SARIF's word for each effect that is a result; notes are none."""
PAGE = "https://detcheck.github.io/detcheck/reading-a-verdict/"
REPOSITORY = ".git"
Places = Mapping[str, tuple[str, int]]
"""By a prompt's text, the URI of the file that holds it and its line, from 1."""
NOWHERE: Places = {}


def artifact_of(file: Path) -> str:
    """The URI of a file relative to its repository's root, or to the present folder without one."""
    absolute = file.absolute()
    roots = [folder for folder in absolute.parents if (folder / REPOSITORY).exists()]
    root = roots[0] if roots else Path.cwd()
    if not absolute.is_relative_to(root):
        return absolute.as_uri()
    return quote(absolute.relative_to(root).as_posix())


def sarif(verdict: Verdict, artifact: str, places: Places = NOWHERE) -> dict[str, Any]:
    """The verdict as a SARIF log: one result for each finding that is not a note.

    `artifact` is the URI of the file that results point to, the experiment file: see `artifact_of`.
    A result on a prompt that `places` has points to that line, every other one to the first line.
    """
    results = [finding for finding in verdict.findings if finding.effect in LEVELS]
    rules = sorted({finding.rule for finding in results})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "detcheck",
                        "semanticVersion": __version__,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [
                    {**_result(verdict, finding, rules), **_location(finding, artifact, places)}
                    for finding in results
                ],
                "properties": dict(verdict.judged.facts()),
            }
        ],
    }


def _rule(rule: str) -> dict[str, Any]:
    """A rule with the texts that code-scanning services show for it."""
    words = rule.replace("-", " ")
    return {
        "id": rule,
        "name": rule,
        "shortDescription": {"text": f"detcheck: {words}"},
        "fullDescription": {"text": f"The rule {rule} of detcheck's gate did not hold."},
        "help": {"text": f"Each result says what was found. How to read a verdict: {PAGE}"},
        "helpUri": PAGE,
    }


def _location(finding: Finding, artifact: str, places: Places) -> dict[str, Any]:
    """The key `locations` of a result."""
    prompt = None if finding.group is None else finding.group.prompt
    uri, line = places.get(prompt or "", (artifact, 1))
    physical = {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}
    return {"locations": [{"physicalLocation": physical}]}


def _result(verdict: Verdict, finding: Finding, rules: list[str]) -> dict[str, Any]:
    return {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": LEVELS[finding.effect],
        "message": {"text": verdict.reason(finding)},
        "partialFingerprints": dict(_identity(finding)),
    }


def _identity(finding: Finding) -> Iterator[tuple[str, str]]:
    """The identity of a result across runs, which does not depend on the order of the prompts.

    GitHub reads the first of these only, and takes results that share it for one. Without it, it
    would hash the line that results point to.
    """
    parts = [finding.rule]
    if finding.group is not None:
        parts += [finding.group.prompt, finding.group.kernels]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    yield "primaryLocationLineHash", f"{digest[:16]}:1"
    yield "rule/v1", finding.rule
    if finding.group is not None:
        yield "prompt/v1", f"{finding.group.prompt_index}/{finding.group.kernels}"


def write_sarif(verdict: Verdict, artifact: str, path: Path, places: Places = NOWHERE) -> None:
    """Write the log to `path`, see `sarif`; raises UsageError if that fails."""
    text = json.dumps(sarif(verdict, artifact, places), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}).") from error
