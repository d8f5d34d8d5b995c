"""Runs that the tests start from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from detcheck import Run, run

from .measured import EXPERIMENT, MIDDLE, Engine


@pytest.fixture(autouse=True)
def no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here; waiting for the disk is most of what these tests would do."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """EXPERIMENT, undisturbed."""
    return run(EXPERIMENT, out=tmp_path_factory.mktemp("whole") / "run", engine=Engine())


@pytest.fixture
def interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    run(EXPERIMENT, out=tmp_path / "run", engine=Engine(fail_with={MIDDLE[1]: KeyboardInterrupt()}))
    return tmp_path / "run"
