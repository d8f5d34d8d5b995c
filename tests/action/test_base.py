"""The action's input `base`: base and head, measured one after the other on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers.faults import Faults
from servers.running import serve

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / ".github/action"
QUICK = {"quiet_s": 0.01, "answer_tokens": 6}
OTHER_ANSWER = {"flip_at": 2, "flip_above": 0}
"""Another answer under every load: only a comparison with the base can show it."""
FILE = """
[target]
endpoints = ["{url}"]
[experiment]
prompts = ["Why?"]
max-new-tokens = 6
completions = 40
batch-sizes = [1, 8]
[gate]
max-distinct = 1
"""

Steps = Callable[..., tuple[int, str, str]]


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder`; returns what it prints."""
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, text: str | None) -> str:
    """Commit an experiment file, or a commit without one; returns the commit's name."""
    if text is not None:
        (folder / "detcheck.toml").write_text(text, encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "a commit")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository without commits."""
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    return folder


@pytest.fixture
def url() -> Iterator[Callable[..., str]]:
    """Returns a function: faults -> the URL of a server that has them."""
    with ExitStack() as held:
        yield lambda **faults: held.enter_context(serve(Faults(**QUICK | faults))).url


@pytest.fixture
def steps(tmp_path: Path, origin: Path) -> Steps:
    """Returns a function: base commit, inputs -> exit code, printed text, the job's summary.

    It checks out the newest commit alone, as actions/checkout does, and runs both steps.
    """
    program = tmp_path / "bin/detcheck"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m detcheck "$@"\n', encoding="utf-8")
    program.chmod(0o755)

    def steps(base: str | None, **inputs: str) -> tuple[int, str, str]:
        head = tmp_path / "head"
        git(tmp_path, "clone", "-q", "--depth=1", f"file://{origin}", str(head))
        event, outputs, summary = (tmp_path / name for name in ("event", "outputs", "summary"))
        event.write_text(json.dumps({"pull_request": {"base": {"sha": base}}} if base else {}))
        outputs.write_text("")
        summary.write_text("")
        known = {
            "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GITHUB_EVENT_PATH": str(event),
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(summary),
        }
        environment = os.environ | known | {"DETCHECK_BASE": "auto"} | inputs
        code, printed = script("base.sh", head, environment)
        if code:
            return code, printed, ""
        run = outputs.read_text(encoding="utf-8").strip().removeprefix("run=")
        code, more = script("check.sh", head, environment | {"DETCHECK_BASELINE": run})
        assert git(head, "worktree", "list").count("\n") == 0, "a worktree was left behind"
        return code, printed + more, summary.read_text(encoding="utf-8")

    return steps


def script(name: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run one of the action's scripts: exit code, printed text."""
    done = subprocess.run(
        ["bash", SCRIPTS / name],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.sweep
def test_equal_answers_pass_and_the_summary_is_of_the_head(steps, origin, url, tmp_path) -> None:
    base = commit(origin, FILE.format(url=url()))
    commit(origin, FILE.format(url=url()))
    code, printed, summary = steps(base)
    assert code == 0, printed
    assert f"Base commit {base}" in printed
    assert summary.count("### detcheck") == 1
    assert (tmp_path / "head/results/ci/base/run/report.html").exists()


@pytest.mark.sweep
def test_another_answer_than_the_bases_fails(steps, origin, url) -> None:
    base = commit(origin, FILE.format(url=url()))
    commit(origin, FILE.format(url=url(**OTHER_ANSWER)))
    code, printed, summary = steps(base)
    assert code == 1, printed
    assert "baseline" in summary


@pytest.mark.sweep
def test_the_same_head_passes_alone(steps, origin, url) -> None:
    """The twin: without the comparison, the planted difference is not seen."""
    base = commit(origin, None)
    commit(origin, FILE.format(url=url(**OTHER_ANSWER)))
    code, printed, _ = steps(base)
    assert code == 0, printed
    assert "::warning title=detcheck::The base commit has no experiment" in printed


@pytest.mark.sweep
def test_the_base_may_have_a_server_of_its_own(steps, origin, url) -> None:
    head, other = url(), url(**OTHER_ANSWER)
    base = commit(origin, FILE.format(url=head))
    commit(origin, FILE.format(url=head))
    code, printed, _ = steps(base, DETCHECK_BASE_ENDPOINT=other)
    assert code == 1, printed


@pytest.mark.sweep
def test_a_base_whose_answers_change_with_its_load_fails_no_job(steps, origin, url) -> None:
    base = commit(origin, FILE.format(url=url(flip_at=3)))
    commit(origin, FILE.format(url=url()))
    code, printed, _ = steps(base)
    assert code == 0, printed


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("base", "inputs", "code", "words"),
    [
        (None, {}, 2, "This event names no base commit"),
        ("f" * 40, {}, 2, f"The base commit {'f' * 40} is not in the checkout"),
        (None, {"DETCHECK_BASE": "--upload-pack=touch x"}, 2, "base is no branch, tag or commit"),
        (None, {"DETCHECK_BASE": "main", "DETCHECK_BASELINE": "b.json"}, 2, "both given"),
        (None, {"DETCHECK_BASE": "main"}, 3, "The base commit could not be measured"),
    ],
)
def test_a_base_that_cannot_be_measured_is_one_sentence(
    steps, origin, base, inputs, code, words
) -> None:
    commit(origin, FILE.format(url="http://127.0.0.1:9/v1"))
    found, printed, _ = steps(base, **inputs)
    assert (found, words in printed) == (code, True), printed
    assert printed.count("::error title=detcheck::") == 1
