"""Fixtures of all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from durations import Durations
from hypothesis import settings
from recorded import record, small_experiment

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.rundir import Run

settings.register_profile("detcheck", deadline=None)  # a busy machine is no fault
settings.load_profile("detcheck")


def pytest_configure(config: pytest.Config) -> None:
    """Every run leaves a report of how long its tests took."""
    config.pluginmanager.register(Durations(), "durations")


@pytest.fixture(scope="session", autouse=True)
def _what_is_loaded_stays() -> None:
    """Garbage is looked for among the objects of tests, not of the libraries: a tenth of the time.

    Before the first test no engine exists that would have to be collected.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and a run waits for the disk after every trial."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def planted_run(tmp_path: Path) -> Callable[..., Run]:
    """Returns a function: divergences to plant, fields of the experiment -> the loaded run.

    `engine` holds arguments of the ScriptedEngine.
    """

    def planted_run(*planted: Planted, engine: dict[str, Any] | None = None, **fields: Any) -> Run:
        scripted = ScriptedEngine(planted, **(engine or {}))
        return record(tmp_path / "run", scripted, small_experiment(**fields))

    return planted_run
