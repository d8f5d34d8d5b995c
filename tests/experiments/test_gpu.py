"""`make gpu` on a machine without a GPU: what it does with sections that hang or take it down."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    return argparse.Namespace(sections=sections, model=None, dry_run=False, compiled=False)


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


@pytest.mark.sweep
def test_a_section_that_fails_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the process that measures: its error is its result, and the sections after it run."""
    pytest.importorskip("torch")
    from gpu_sections import child

    def measure(section: plan.Section, *_: object) -> dict[str, object]:
        if section.name == "source":
            raise ValueError("planted")
        return {"failures": []}

    monkeypatch.setattr(child, "why_not_here", lambda: None)
    monkeypatch.setattr(child, "environment", dict)
    monkeypatch.setattr(child, "gpu_answers", lambda: True)
    monkeypatch.setattr(plan.Section, "measure", measure)
    monkeypatch.setattr(plan.Section, "show", lambda self, result: ["shown"])
    options = argparse.Namespace(sections="correctness,classes,source", minutes=5, plain=False)
    assert child.measure_all(options) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ends = {event["end"]: event["result"] for event in events if "end" in event}
    assert [*ends] == ["correctness", "source", "classes"]
    assert ends["source"]["error"] == "ValueError: planted"
    assert ends["correctness"]["table"] == ends["classes"]["table"] == ["shown"]
    assert report.failed({"sections": ends})


def test_what_was_measured_is_on_disk_if_the_whole_run_is_killed(tmp_path: Path) -> None:
    """Killed while a section hangs: the section before it was written."""
    child = tmp_path / "child.py"
    child.write_text(CHILD.replace("0.2", "3600"))
    out = tmp_path / "out"
    script = (
        "import argparse, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from gpu_sections import supervisor; from gpu_sections.clock import Clock\n"
        "supervisor.SCRIPT = Path(sys.argv[2])\n"
        "options = argparse.Namespace(sections='correctness,source', model=None, dry_run=True)\n"
        "supervisor.measure(options, Clock(600), Path(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", script, EXPERIMENTS, child, out]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as running:
        deadline = time.monotonic() + 60
        while not (out / "table.md").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)  # the section's process too
    written = json.loads((out / "gpu.json").read_text())
    assert list(written["sections"]) == ["correctness"]
    assert "correctness is done" in (out / "table.md").read_text()


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
    """If the kernels are compiled. The whole plan fits one call of ten minutes."""
    names = tuple(section.name for section in plan.SECTIONS)
    assert names[: len(plan.FIRST)] == plan.FIRST
    needed = sum(section.seconds for section in plan.SECTIONS if section.name in plan.FIRST)
    assert needed <= plan.FIRST_S
    given = plan.budgets(plan.SECTIONS, 7.5 * 60 - supervisor.COMPILING_S)
    assert all(given[name] > 0 for name in names[:7])


class ClosedMeanwhile:
    """The output of a child that is ended while a thread reads it."""

    def __iter__(self) -> Iterator[str]:
        yield '{"begin": "correctness"}\n'
        raise ValueError("I/O operation on closed file")


def test_a_child_that_is_ended_while_it_speaks_ends_its_events() -> None:
    lines: Any = ClosedMeanwhile()
    assert list(supervisor.events(lines, Clock(5))) == [{"begin": "correctness"}]
