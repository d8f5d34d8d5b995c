"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded import record, small_experiment

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.rundir import Run


@pytest.fixture
def planted_run(tmp_path: Path) -> Callable[..., Run]:
    """Returns a function: divergences to plant, fields of the experiment -> the loaded run.

    `engine` holds arguments of the ScriptedEngine.
    """

    def planted_run(*planted: Planted, engine: dict[str, Any] | None = None, **fields: Any) -> Run:
        scripted = ScriptedEngine(planted, **(engine or {}))
        return record(tmp_path / "run", scripted, small_experiment(**fields))

    return planted_run
