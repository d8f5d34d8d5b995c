"""Fixtures: start the small server, and run a small experiment against it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from asking import ask

from detcheck.analysis import Analysis, analyse
from detcheck.engines.openai.connection import Connection
from detcheck.runner import run

from .behaviour import Behaviour
from .server import ToyServer, serving


@pytest.fixture
def serve() -> Iterator[Callable[..., ToyServer]]:
    """Start a server with a behaviour; it ends with the test."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    with ExitStack() as held:
        yield lambda **fields: held.enter_context(serving(Behaviour(**fields)))


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., Analysis]:
    """Run a small experiment against servers and analyse it."""

    def call(*servers: ToyServer, connection: Connection | None = None, **fields: Any) -> Analysis:
        asked = {"batch_sizes": (1, 8), "completions": 27, "max_new_tokens": 12} | fields
        experiment, target = ask(endpoints=[server.url for server in servers], **asked)
        return analyse(run(experiment, target, tmp_path / "run", connection=connection))

    return call
