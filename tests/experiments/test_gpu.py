"""`make gpu` on a machine without a GPU: what it does with sections that hang or take it down."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

from gpu_sections import plan, report, supervisor  # noqa: E402  (found through the line above)
from gpu_sections.clock import Clock  # noqa: E402

CHILD = """
import json, os, sys, time
if "--child" not in sys.argv:
    sys.exit()
print(json.dumps({"environment": {"gpu": {"name": "a card"}}}), flush=True)
print("something that a library says", flush=True)
for name in sys.argv[sys.argv.index("--sections") + 1].split(","):
    print(json.dumps({"begin": name, "seconds": 0.2}), flush=True)
    if name == "source" and "--plain" not in sys.argv:
        time.sleep(60)
    if name == "matmul":
        os._exit(139)
    print(json.dumps({"end": name, "result": {"table": [name + " is done"]}}), flush=True)
"""


@pytest.fixture
def options() -> argparse.Namespace:
    return options_for("correctness,source,matmul,attention")


def options_for(sections: str) -> argparse.Namespace:
    return argparse.Namespace(sections=sections, model=None, dry_run=False)


def test_what_hangs_or_crashes_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: argparse.Namespace
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(supervisor, "SCRIPT", script)
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    found = supervisor.measure(options, Clock(60), tmp_path / "out")
    assert [
        (name, result["plain"], "error" in result) for name, result in found["sections"].items()
    ] == [
        ("correctness", False, False),
        ("source, first try", False, True),
        ("source", True, False),
        ("attention", True, False),
        ("matmul", True, True),
    ]
    assert report.failed(found)
    written = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert written["sections"] == found["sections"]
    assert "attention is done" in (tmp_path / "out" / "table.md").read_text()


def test_what_is_measured_after_wrong_products_is_measured_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    wrong = '{"table": [], "failures": ["--plain" in sys.argv and "mean" or "matmul bfloat16"]}'
    script.write_text(CHILD.replace('{"table": [name + " is done"]}', wrong))
    monkeypatch.setattr(supervisor, "SCRIPT", script)
    options = options_for("correctness,attention")
    found = supervisor.measure(options, Clock(60), tmp_path / "out")
    assert [(name, result["plain"]) for name, result in found["sections"].items()] == [
        ("correctness, first try", False),
        ("correctness", True),
        ("attention", True),
    ]


def test_the_whole_time_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: argparse.Namespace
) -> None:
    """A section that says it needs an hour is ended with the rest of the time."""
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("0.2", "3600"))
    monkeypatch.setattr(supervisor, "SCRIPT", script)
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    started = time.monotonic()
    found = supervisor.measure(options, Clock(2), tmp_path / "out")
    assert time.monotonic() - started < 10
    assert list(found["sections"]) == ["correctness", "source, first try"]


@pytest.mark.sweep
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "gpu.py"],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stderr
    assert done.stdout == ""


def test_every_section_is_there() -> None:
    for section in plan.SECTIONS:
        text = (EXPERIMENTS / "gpu_sections" / f"{section.module}.py").read_text()
        assert f"def {section.measuring}(" in text
        assert f"def {section.showing}(" in text


def test_the_processes_share_the_kernels_out() -> None:
    """Each kernel is compiled by one of them, whichever it is."""
    pytest.importorskip("triton")
    from gpu_sections import precompile

    compiled: list[object] = []
    counts = {
        precompile.precompile((index, 3), (9, 0), lambda *launch: compiled.append(launch))
        for index in range(3)
    }
    assert counts == {len(compiled)}
    assert len(compiled) > 200


@pytest.mark.sweep
def test_a_kernel_that_is_wrong_is_a_failure() -> None:
    """Also one whose results are no numbers."""
    pytest.importorskip("triton")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from gpu_sections.common import note_error, wrong\n"
        "x, errors = torch.ones(4), {}\n"
        "for name, got in (('good float32', x), ('tf32 float32', x * 1.0003), "
        "('nan bfloat16', x / 0 * 0)):\n"
        "    note_error(errors, name, got, x.double()); note_error(errors, name, x, x.double())\n"
        "print([each.split()[0] for each in wrong(errors)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, EXPERIMENTS], capture_output=True, text=True, check=False
    )
    assert done.stdout == "['tf32', 'nan']\n", done.stderr[-2000:]


def test_the_first_four_minutes_show_what_matters_most() -> None:
    """Compiling included. The whole plan fits one call of ten minutes."""
    names = tuple(section.name for section in plan.SECTIONS)
    assert names[: len(plan.FIRST)] == plan.FIRST
    needed = sum(section.seconds for section in plan.SECTIONS if section.name in plan.FIRST)
    assert supervisor.COMPILING_S + needed <= plan.FIRST_S
    given = plan.budgets(plan.SECTIONS, 7.5 * 60 - supervisor.COMPILING_S)
    assert all(given[name] > 0 for name in names[:7])
