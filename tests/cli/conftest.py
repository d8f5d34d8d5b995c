"""The program, in this process and in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from gate.runs import write

from detcheck import runner
from detcheck.cli.app import run_program
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.kernels.settings import BATCH_INVARIANT

SCRIPTED = ("run", "--engine", "scripted", "-b", "1,4", "-n", "12", "--max-new-tokens", "12")
PROGRAM = (sys.executable, "-m", "detcheck")


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def only_sentence(self) -> str:
        """The one line on stderr, where nothing is on stdout."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        return self.err


@pytest.fixture
def detcheck(capsys, monkeypatch, tmp_path) -> Callable[..., Result]:
    """Run a command line in this process, from an empty folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("DETCHECK_DEBUG", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def call(*args: str | Path) -> Result:
        code = run_program([str(arg) for arg in args])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def program(tmp_path) -> Callable[..., Result]:
    """Run a command line through the real program."""

    def call(*args: str | Path, **options) -> Result:
        done = subprocess.run(
            [*PROGRAM, *map(str, args)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def good(tmp_path) -> Path:
    """A run whose stock kernels diverge at token 5 and whose batch-invariant ones do not."""
    return write(tmp_path / "good", ScriptedEngine([Planted(5, 3, min_batch_size=4)]))


@pytest.fixture
def bad(tmp_path) -> Path:
    """A run whose batch-invariant kernels diverge too."""
    return write(tmp_path / "bad", ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)]))


@pytest.fixture
def scripted(monkeypatch) -> Callable[..., None]:
    """Returns a function: what the scripted engine is made with from now on."""

    def scripted(*planted: Planted, **options) -> None:
        monkeypatch.setattr(runner, "open_engine", lambda *_: ScriptedEngine(planted, **options))

    return scripted


@pytest.fixture
def stopped(detcheck, scripted) -> Path:
    """A run that was interrupted half way."""
    scripted(fail_with={("p0/stock/b4", 1): KeyboardInterrupt()})
    assert detcheck(*SCRIPTED, "-o", "stopped").code == 3
    scripted()
    return Path("stopped")
