"""Gives the replays the tiny model of the engines' tests, and runs scripts without detcheck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engines.conftest import tiny_model
from engines.openai_engine.conftest import measure, serve

__all__ = ["alone", "measure", "serve", "tiny_model"]

WITHOUT_DETCHECK = (
    "import runpy, sys; sys.modules['detcheck'] = None; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own that cannot import detcheck, in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", WITHOUT_DETCHECK, str(script)],
            cwd=empty,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
