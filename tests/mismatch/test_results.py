"""What a folder keeps is what was measured, also if a measure is no number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from detcheck.analysis.mismatch.headline import headline_of
from detcheck.analysis.mismatch.measures import measure
from detcheck.analysis.mismatch.results import (
    MISMATCH_FILE,
    WHOLE,
    MismatchReport,
    MismatchRow,
    load_mismatch,
)
from detcheck.cli.console import json_text
from detcheck.errors import ExitCode
from detcheck.mismatch.options import MismatchLimits
from detcheck.mismatch.verdict import judge_mismatch
from detcheck.report.mismatch_page import mismatch_files


def row(layout: str, trainer: float) -> MismatchRow:
    found = measure([np.array([-1.0]), np.array([-2.0])], [np.array([trainer]), np.array([-2.0])])
    return MismatchRow.of(found, "stock", WHOLE, layout, "float16")


def kept(folder: Path, *rows: MismatchRow) -> MismatchReport:
    report = MismatchReport(rows=rows, headline=headline_of(rows, ()))
    (folder / MISMATCH_FILE).write_text(json_text(report))
    return load_mismatch(folder)


def test_a_row_starts_with_its_arm() -> None:
    assert MismatchRow.__struct_fields__[:6] == (
        "kernels", "link", "trainer_layout", "trainer_dtype", "tokens", "sequences",
    )  # fmt: skip


def test_a_folder_gives_its_measurement_back(tmp_path: Path) -> None:
    report = kept(tmp_path, row("padded", -1.5))
    assert report.rows[0].k1 == 0.25
    assert json_text(report) == (tmp_path / MISMATCH_FILE).read_text()


@pytest.mark.parametrize("trainer", [math.nan, -math.inf])
def test_a_trainer_that_overflows_is_kept_shown_and_fails(tmp_path: Path, trainer: float) -> None:
    report = kept(tmp_path, row("single", -1.0), row("padded", trainer))
    assert math.isnan(report.rows[1].k3)
    for limits in (MismatchLimits(max_k3=1e9), MismatchLimits(bitwise=True)):
        assert judge_mismatch(report, limits).exit_code == ExitCode.FAILED
    assert "report.html" in mismatch_files(report)


def test_a_gap_that_is_no_number_is_never_called_none() -> None:
    headline = headline_of([row("single", -1.0), row("padded", math.nan)], ())
    assert "no gap" not in headline
    assert "(padded, float16)" in headline
