"""A server that does not answer: the checks have a limit, and progress says what they wait for."""

from __future__ import annotations

import time

import pytest
from asking import ask

from detcheck.cli import progress
from detcheck.cli.app import run_program
from detcheck.engines import Connection
from detcheck.errors import MeasurementError
from detcheck.listener import Listener
from detcheck.runner import run

PATIENCE_S = 0.5
LIMIT_S = 30.0
"""Less than any limit of the connection itself."""


class Recorded(Listener):
    """Keeps what the checks waited for."""

    def __init__(self) -> None:
        self.phrases: list[str] = []

    def waiting_for(self, phrase: str) -> None:
        self.phrases.append(phrase)


def silent(number: int, body: object) -> str:
    return "stall"


def silent_after(answers: int):
    return lambda number, body: "stall" if number > answers else None


@pytest.mark.parametrize("fault", [silent, silent_after(4)], ids=["at once", "later"])
def test_checks_of_a_server_that_falls_silent_end_at_their_own_limit(serve, tmp_path, fault):
    server, listener = serve(fault=fault), Recorded()
    experiment, target = ask(endpoints=[server.url], completions=4, batch_sizes=(1,))
    connection = Connection(check_timeout_s=PATIENCE_S)
    began = time.monotonic()
    with pytest.raises(MeasurementError, match=r"did not answer it within 0.5 s: .*check_timeout"):
        run(experiment, target, tmp_path / "run", connection=connection, listener=listener)
    assert time.monotonic() - began < LIMIT_S
    assert any(server.url in phrase and "0.5 s at most" in phrase for phrase in listener.phrases)


def test_limit_of_the_checks_on_the_command_line(serve, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "LONG_WAIT_S", 0.1)
    url = serve(fault=silent).url
    code = run_program(["run", "--endpoint", url, "-n", "4", "-b", "1", "--check-timeout", "0.5"])
    err = capsys.readouterr().err
    assert code == 3
    assert f"waiting for a short answer of {url}, 0.5 s at most …" in err
    assert "allow more time by --check-timeout" in err


def test_short_waits_are_not_reported(serve, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_program(["run", "--endpoint", serve().url, "-n", "4", "-b", "1"]) == 0
    assert "waiting" not in capsys.readouterr().err
