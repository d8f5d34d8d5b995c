"""The committed headline run: a pass for batch-invariant, a fail for stock, each on one screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from detcheck.cli import console
from detcheck.cli.gate import show_verdict
from detcheck.errors import ExitCode
from detcheck.gate import GateOptions, judge
from detcheck.gate.files import load_analysis
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

RUN = Path(__file__).parents[2] / "results/eighty_variants"
ROWS, COLUMNS = 24, 80


@pytest.fixture(scope="module")
def headline():
    return load_analysis(RUN)


@pytest.fixture
def screen(headline, capsys, monkeypatch):
    """Returns a function: kernels -> the exit code, and the rows on a terminal of 80 columns."""

    def screen(kernels):
        monkeypatch.setattr(console.stdout, "_force_terminal", True)
        monkeypatch.setattr(console.stdout, "_width", COLUMNS)
        monkeypatch.setattr(console.stdout, "_color_system", None)
        options = GateOptions(kernels=kernels)
        verdict = judge(headline, options)
        show_verdict(verdict, options, as_json=False)
        rows = [line for line in capsys.readouterr().out.splitlines() if "results/" not in line]
        assert all(len(row) <= COLUMNS for row in rows)
        assert len(rows) + 1 < ROWS, "the prompt of the shell needs a row too"
        return verdict.exit_code, " ".join(" ".join(rows).split())

    return screen


def test_batch_invariant_passes_and_says_why(screen):
    code, text = screen(BATCH_INVARIANT)
    assert code == ExitCode.OK
    assert "0 of 872 comparisons differed" in text
    assert "The control (stock) gave 43 distinct answers in 1,000 completions" in text
    assert "judged by bits" in text


def test_stock_fails_and_says_where_and_why(screen):
    code, text = screen(STOCK)
    assert code == ExitCode.FAILED
    assert "43 distinct answers in 1,000 completions, at most 1 allowed" in text
    assert "the first divergence is at position 12, after" in text
    assert "(tie): rounding decided between two tokens." in text
