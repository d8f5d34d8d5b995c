"""The embedded model in each dtype and engine; and the committed measurement of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from detcheck.analysis.mismatch.headline import headline_of
from detcheck.analysis.mismatch.results import load_mismatch
from detcheck.mismatch.options import MismatchLimits
from detcheck.mismatch.verdict import judge_mismatch

RESULTS = Path(__file__).parents[2] / "results" / "sampler_against_trainer"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["continuous", "static"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fully_invariant_is_exactly_equal(dtype: str, engine: str, tmp_path: Path) -> None:
    from detcheck.cli.app import run_program

    options = ("-n", "4", "-b", "4", "--max-new-tokens", "10", "--min-tokens", "20", "--bitwise")
    arms = ("-k", "stock,fully-invariant", "--dtype", dtype, "--engine", engine)
    assert run_program(["mismatch", *options, *arms, "-o", str(tmp_path / "m")]) == 0
    report = load_mismatch(tmp_path / "m")
    full = [row for row in report.rows if row.kernels == "fully-invariant"]
    assert {row.bitwise_tokens for row in full} == {1}
    assert {row.max_abs for row in full} == {0}
    assert report.missing == ()


def test_the_committed_measurement_passes_and_its_headline_is_that_of_its_rows() -> None:
    report = load_mismatch(RESULTS)
    assert headline_of(report.rows, report.faults) == report.headline
    verdict = judge_mismatch(report, MismatchLimits(bitwise=True))
    assert verdict.value == "pass", verdict.reasons
    stock = [row for row in report.wholes() if row.kernels == "stock"]
    assert all(row.k3 > 1e-4 for row in stock)
