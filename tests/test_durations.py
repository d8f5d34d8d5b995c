"""The report of durations: what a test computes is on its line, and what it waits is not."""

from __future__ import annotations

import csv

import durations
import pytest

WAITS = "import time\n\ndef test_waits():\n    time.sleep(0.3)\n"
COMPUTES = (
    "import time\n\ndef test_computes():\n"
    "    start = time.process_time()\n    while time.process_time() - start < 0.2: pass\n"
)


@pytest.mark.parametrize(
    ("code", "computes"), [(COMPUTES, True), (WAITS, False)], ids=["computes", "waits"]
)
def test_processor_time_is_told_from_waiting(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, code: str, computes: bool
) -> None:
    report = pytester.path / "durations.csv"
    monkeypatch.setattr(durations, "REPORT", report)
    pytester.makepyfile(code)
    result = pytester.inline_run(plugins=[durations.Durations()])
    result.assertoutcome(passed=1)
    with report.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["test"].endswith("test_computes" if computes else "test_waits")
    assert float(row["wall_s"]) > 0.15
    assert (float(row["cpu_s"]) > 0.15) == computes
