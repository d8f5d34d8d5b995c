"""A verdict as SARIF 2.1.0, which code-scanning services show beside the changed lines.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detcheck import __version__
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, Finding
from detcheck.errors import UsageError
from detcheck.gate.verdict import Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {FAIL: "error", INCONCLUSIVE: "warning"}
"""SARIF's word for each effect that is a result; notes are none."""


def sarif(verdict: Verdict, artifact: str) -> dict[str, Any]:
    """The verdict as a SARIF log: one result for each finding that is not a note.

    `artifact` is the path of the file that results point to, relative to the repository's root:
    the experiment file.
    """
    found = [finding for finding in verdict.findings if finding.effect in LEVELS]
    rules = sorted({finding.rule for finding in found})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "detcheck",
                        "semanticVersion": __version__,
                        "rules": [{"id": rule, "name": rule} for rule in rules],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(verdict, finding, rules, artifact) for finding in found],
                "properties": dict(verdict.judged.facts()),
            }
        ],
    }


def _result(verdict: Verdict, finding: Finding, rules: list[str], artifact: str) -> dict[str, Any]:
    location = {"artifactLocation": {"uri": artifact}, "region": {"startLine": 1}}
    return {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": LEVELS[finding.effect],
        "message": {"text": verdict.reason(finding)},
        "locations": [{"physicalLocation": location}],
        "partialFingerprints": dict(_identity(finding)),
    }


def _identity(finding: Finding) -> Iterator[tuple[str, str]]:
    """The identity of a result across runs."""
    yield "rule/v1", finding.rule
    if finding.group is not None:
        yield "prompt/v1", f"{finding.group.prompt_index}/{finding.group.kernels}"


def write_sarif(verdict: Verdict, artifact: str, path: Path) -> None:
    """Write the log to `path`; raises UsageError if that fails."""
    text = json.dumps(sarif(verdict, artifact), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}).") from error
