"""A verdict as JUnit XML, which every CI system shows: a test case a prompt."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from detcheck.errors import UsageError
from detcheck.gate.verdict import FAIL, INCONCLUSIVE, NOTE, Case, Verdict

INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""
ELEMENTS = {FAIL: "failure", INCONCLUSIVE: "error"}
"""An inconclusive case is an error: `skipped` would look green."""


def junit_xml(verdict: Verdict) -> bytes:
    """The verdict as a JUnit document in UTF-8."""
    counts = {
        "tests": str(len(verdict.cases)),
        "failures": str(sum(case.verdict == FAIL for case in verdict.cases)),
        "errors": str(sum(case.verdict == INCONCLUSIVE for case in verdict.cases)),
        "skipped": "0",
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "detcheck gate", **counts})
    for case in verdict.cases:
        _add_case(suite, case)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def write_junit(verdict: Verdict, path: Path) -> None:
    """Write the verdict to `path`; raises UsageError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(junit_xml(verdict))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): choose another --junit."
        ) from error


def _add_case(suite: ElementTree.Element, case: Case) -> None:
    attributes = {"classname": "detcheck.gate", "name": _valid(case.group.name), "time": "0"}
    element = ElementTree.SubElement(suite, "testcase", attributes)
    kind = ELEMENTS.get(case.verdict)
    if kind is not None:
        attributes = {"type": case.verdict, "message": _valid(case.reasons[0])}
        ElementTree.SubElement(element, kind, attributes).text = _valid("\n".join(case.reasons))
    else:
        notes = [finding.sentence for finding in case.findings if finding.effect == NOTE]
        ElementTree.SubElement(element, "system-out").text = _valid("\n".join(notes))


def _valid(text: str) -> str:
    return INVALID.sub("", text)
