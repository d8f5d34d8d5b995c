"""`make gpu` without a GPU: every section's control flow, on a device that stands in for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import plan

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
DRY = {"DETCHECK_GPU_DRY_RUN": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}


def dry_run(out: Path, *options: str, path: Path = ROOT) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of a dry run; modules are looked for in `path` first."""
    command = [sys.executable, EXPERIMENTS / "gpu.py", "--dry-run", "--out", out, *options]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (out / "gpu.json").exists(), done.stderr[-2000:]
    return done.returncode, json.loads((out / "gpu.json").read_text())


@pytest.mark.sweep
def test_a_section_runs_dry(tmp_path: Path) -> None:
    code, report = dry_run(tmp_path, "--sections", "source")
    assert code == 0
    assert report["dry_run"]
    assert report["sections"]["source"]["max_difference"]["invariant"] == 0
    table = (tmp_path / "table.md").read_text()
    assert "nothing was measured" in table


@pytest.mark.sweep
def test_every_section_runs_dry(tmp_path: Path) -> None:
    code, report = dry_run(tmp_path, "--minutes", "20")
    sections = report["sections"]
    assert list(sections) == [section.name for section in plan.SECTIONS]
    assert {name: result.get("error") for name, result in sections.items()} == dict.fromkeys(
        sections
    )
    assert {name: result.get("failures", []) for name, result in sections.items()} == {
        name: [] for name in sections
    }
    assert not any(result.get("unfinished") for result in sections.values())
    assert all(result["table"] for result in sections.values())
    assert code == 0


NO_TIME = """
import argparse, json, sys
sys.path.insert(0, sys.argv[1])
from gpu_sections import plan
from gpu_sections.clock import Clock
options = argparse.Namespace(model=None)
for section in plan.SECTIONS:
    result = section.measure(Clock(0), options)
    print(json.dumps([section.name, section.show(result)]))
"""


@pytest.mark.sweep
def test_what_there_is_when_the_time_is_up_is_a_valid_result() -> None:
    """Each section stops at its first look at the clock, and can still be shown."""
    done = subprocess.run(
        [sys.executable, "-c", NO_TIME, EXPERIMENTS], env=os.environ | DRY, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [name for name, _ in shown] == [section.name for section in plan.SECTIONS]
    assert all(isinstance(lines, list) for _, lines in shown)


def test_the_plan_counts_what_the_sections_do() -> None:
    """The model of the time is a sum over steps; their numbers are those of the sections."""
    from gpu_sections import (
        attention,
        classes,
        correctness,
        correctness_attention,
        correctness_rows,
        end_to_end,
        graphs,
        matmul,
        step,
        tiles,
        variants,
    )

    planned = {section.name: [cost.count for cost in section.costs] for section in plan.SECTIONS}
    checks = (
        correctness.matmul_checks({}),
        correctness_attention.attention_checks({}),
        correctness_attention.windowed_checks({}),
        correctness_rows.row_checks({}),
        correctness_rows.expert_checks({}),
        correctness_rows.ordered_checks({}),
    )
    assert planned["correctness"] == [len([*each]) for each in checks]
    kinds = len(classes.DTYPES) * len(classes.DEPTHS)
    assert planned["classes"] == [kinds, 2 * len(classes.HEADS), 2 * len(classes.layers())]
    assert planned["variants"][1:] == [len(variants.SETTINGS), len(variants.GRAPH_SIZES)]
    assert planned["step"] == [len(step.KERNELS) * len(step.LOADS)]
    assert planned["end to end"][1] == len(end_to_end.SETTINGS)
    assert planned["graphs"] == [2 * len(graphs.KERNELS) * len(graphs.LOADS)]
    assert planned["attention"] == [len(attention.CASES)]
    assert planned["matmul"] == [len(matmul.cases())]
    assert planned["tiles"] == [len(tiles.ROWS) * len(tiles.SHAPES)]


def test_time_is_given_in_order_of_value() -> None:
    """Correctness first; what does not fit is left out from the end."""
    names = [section.name for section in plan.SECTIONS]
    assert names[0] == "correctness"
    given = plan.budgets(plan.SECTIONS, 100)
    assert given["correctness"] >= plan.SECTIONS[0].seconds
    assert given["tiles"] == 0
    assert sum(min(given[s.name], s.seconds) for s in plan.SECTIONS) <= 100
    enough = sum(section.seconds for section in plan.SECTIONS)
    assert all(plan.budgets(plan.SECTIONS, enough).values())


def test_the_whole_plan_fits_into_the_default_time() -> None:
    whole = sum(section.seconds for section in plan.SECTIONS if not section.needs)
    assert whole <= 7.5 * 60


def test_servers_take_no_time_unless_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    served = next(section for section in plan.SECTIONS if section.name == "served")
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    assert served.seconds <= 1
    monkeypatch.setattr(plan, "find_spec", lambda name: object() if name == "vllm" else None)
    assert served.seconds > 100


@pytest.mark.sweep
def test_whole_models_answer_without_the_dependencies_of_detcheck(tmp_path: Path) -> None:
    """As on a machine with torch, triton and transformers alone."""
    (tmp_path / "msgspec.py").write_text("raise ImportError('not installed')")
    code, found = dry_run(tmp_path / "out", "--sections", "variants,graphs", path=tmp_path)
    assert code == 0, found["sections"]
    groups = found["sections"]["variants"]["groups"]
    assert [group["completions"] for group in groups] == [5, 5, 5]
    assert groups[1]["self_check"] == "passed"
    assert found["sections"]["variants"]["run"] is None
    assert found["sections"]["graphs"]["rows"]
