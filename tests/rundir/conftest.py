"""A finished run, to be damaged or resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from recorded import record

from detcheck.rundir import (
    COMPLETIONS_FILE,
    RUN_FILE,
    VARIANTS_FILE,
)

from .runs import EXPERIMENT, engine


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with bytes of a trial that was never committed behind its seals."""
    path = tmp_path_factory.mktemp("base") / "run"
    record(path, engine(), EXPERIMENT)
    for name in (COMPLETIONS_FILE, VARIANTS_FILE):
        with (path / name).open("ab") as file:
            file.write(b'{"condition": 0, "trial": 99, "never": "committed"}\n{"condi')
    return path


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture(scope="package")
def sealed_bytes(base: Path) -> dict[str, int]:
    seals = json.loads((base / RUN_FILE).read_bytes())["files"]
    size = (base / RUN_FILE).stat().st_size
    return {RUN_FILE: size} | {name: seal["bytes"] for name, seal in seals.items()}


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    record(path, engine(), EXPERIMENT)
    return path
