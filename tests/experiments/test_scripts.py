"""Every experiment takes its options; the tables under `results/` are those it would write."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
RESULTS = ROOT / "results"
PARTS = {
    *("cures", "gpu", "instant_server", "matrix_costs"),
    *("matrix_relations", "matrix_table"),
    *("rl_loop", "rl_report", "rl_tasks"),
}
"""Files that a script imports, and the script of the GPU, which has its own tests."""
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem not in PARTS)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    script = importlib.import_module(name)
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    first_line = (script.__doc__ or "").splitlines()[0]
    shown = "".join(capsys.readouterr().out.split())  # argparse breaks lines within words
    assert "".join(first_line.split()) in shown


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_docstring_shows_its_command(name: str) -> None:
    """The docstring shows how to start this script."""
    text = (EXPERIMENTS / f"{name}.py").read_text(encoding="utf-8")
    assert f"python experiments/{name}.py" in text


def test_the_committed_table_of_the_ablation_is_made_from_its_figures() -> None:
    ablation = importlib.import_module("ablation")
    stored = json.loads((RESULTS / "ablation" / "results.json").read_text(encoding="utf-8"))
    options = argparse.Namespace(**stored, batch_sizes="1,4,8,16")
    assert ablation.table(stored["rows"], options) == _committed("ablation")


def test_another_figure_gives_another_table() -> None:
    """The twin of the test above: the table does depend on the figures."""
    ablation = importlib.import_module("ablation")
    stored = json.loads((RESULTS / "ablation" / "results.json").read_text(encoding="utf-8"))
    options = argparse.Namespace(**stored, batch_sizes="1,4,8,16")
    stored["rows"][0]["distinct"] += 1
    assert ablation.table(stored["rows"], options) != _committed("ablation")


def test_the_committed_table_of_the_servers_is_made_from_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = importlib.import_module("serving_engines")
    stored = json.loads((RESULTS / "serving_engines" / "results.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(serving, "RESULTS", tmp_path)
    serving._write(stored)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == _committed("serving_engines")


@pytest.mark.slow
def test_the_client_benchmark_measures_the_instant_server() -> None:
    """A whole round with few requests: both rows are there, and every request was answered."""
    command = [sys.executable, str(EXPERIMENTS / "bench_client.py"), "--json"]
    command += ["--rounds", "1", "--in-flight", "4", "--requests", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["client"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {"detcheck", "detcheck, full replies"}
    assert all(row["completed"] == 8 for row in rows.values())


def _committed(experiment: str) -> str:
    return (RESULTS / experiment / "table.md").read_text(encoding="utf-8")
