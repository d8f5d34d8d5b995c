"""A verdict as JUnit XML, which every CI system shows: one test case a prompt."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE
from detcheck.errors import UsageError
from detcheck.gate.verdict import GroupVerdict, Verdict

INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""
ELEMENTS = {FAIL: "failure", INCONCLUSIVE: "error"}
"""An inconclusive case is an error, because `skipped` would look green."""


def junit_xml(verdict: Verdict) -> bytes:
    """The verdict as a JUnit document in UTF-8; its properties name the run judged."""
    counts = {
        "tests": str(len(verdict.groups)),
        "failures": str(sum(judged.value == FAIL for judged in verdict.groups)),
        "errors": str(sum(judged.value == INCONCLUSIVE for judged in verdict.groups)),
        "skipped": "0",
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "detcheck gate", **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for name, text in verdict.judged.facts():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _valid(text)})
    for judged in verdict.groups:
        _add_case(suite, judged)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def write_junit(verdict: Verdict, path: Path) -> None:
    """Write the verdict to `path`. Raises UsageError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(junit_xml(verdict))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): choose another file by `junit`."
        ) from error


def _add_case(suite: ElementTree.Element, judged: GroupVerdict) -> None:
    attributes = {"classname": "detcheck.gate", "name": _valid(judged.group.name), "time": "0"}
    element = ElementTree.SubElement(suite, "testcase", attributes)
    kind = ELEMENTS.get(judged.value)
    if kind is not None:
        attributes = {"type": judged.value, "message": _valid(judged.reasons[0])}
        ElementTree.SubElement(element, kind, attributes).text = _valid("\n".join(judged.reasons))
    else:
        notes = [finding.sentence for finding in judged.findings if finding.effect == NOTE]
        ElementTree.SubElement(element, "system-out").text = _valid("\n".join(notes))


def _valid(text: str) -> str:
    return INVALID.sub("", text)
