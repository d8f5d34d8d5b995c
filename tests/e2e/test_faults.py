"""A fault is planted in a server; detcheck, through its command line, must report it.

The rows are in `fault_rows`. Each row of `JUDGED` holds a fault, the gate's verdict and a sentence.
Each has a clean twin: the same command against the same server without the fault, which must pass.
Rows of `REFUSED` are servers that cannot be asked at all: one sentence, exit 2 or 3, nothing
written. No test waits for longer than the client's own `--timeout`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from servers.faults import Faults
from servers.running import Served, serve
from sweeps import few

from detcheck.cli.app import run_program

from .fault_rows import (
    CLEAN,
    COMMAND,
    FAIL,
    INCONCLUSIVE,
    JUDGED,
    PASS,
    REFUSED,
    TIMEOUT,
    USAGE,
    Row,
    server,
    some,
)

EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}


def named(rows: tuple[Any, ...]) -> Any:
    """Parametrise by rows under their names; the fast suite runs every sixteenth."""
    return few("row", rows, every=16, ids=[row.name.replace(" ", "-") for row in rows])


def twins() -> tuple[Row, ...]:
    """The clean twins, each once."""
    seen = {(row.twin, row.options): row for row in JUDGED}
    return tuple(
        replace(
            row,
            name=f"without {row.name}",
            faults=twin,
            verdict=PASS,
            says="0 of 24 comparisons",
        )
        for (twin, _), row in seen.items()
    )


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Returns a function: a server and options -> exit code and output of `detcheck run`."""
    monkeypatch.setenv("PLANTED_KEY", "s3cret-key")

    def ask(served: Served, *options: str) -> tuple[int, str]:
        command = ("run", "tiny", "--endpoint", served.url, *COMMAND, *options)
        code = run_program([*command, "--out", str(tmp_path / "run")])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return ask


@pytest.fixture
def judge(ask, capsys, tmp_path) -> Callable[[Faults, tuple[str, ...]], tuple[int, str]]:
    """Returns a function: faults and options -> exit code of the gate, and all that was said."""

    def judge(faults: Faults, options: tuple[str, ...]) -> tuple[int, str]:
        with serve(faults) as served:
            code, said = ask(served, *options)
        assert code == 0, said
        run = str(tmp_path / "run")
        code = run_program(["gate", run])
        assert run_program(["report", run, "--format", "md"]) == 0
        report = unescape((tmp_path / "run" / "report.md").read_text(encoding="utf-8"))
        return code, said + capsys.readouterr().out + report

    return judge


@named(JUDGED)
def test_the_fault_is_named(judge, row):
    code, said = judge(row.faults, row.options)
    assert code == EXIT_CODES[row.verdict], said
    assert re.search(row.says, said), said


@named(twins())
def test_its_clean_twin_passes(judge, row):
    code, said = judge(row.faults, row.options)
    assert code == EXIT_CODES[PASS], said
    assert re.search(row.says, said), said


@named(REFUSED)
def test_a_server_that_cannot_be_asked(ask, tmp_path, row):
    with serve(row.faults) as served:
        code, said = ask(served, *row.options)
    assert code == row.code, said
    assert re.search(row.says, said), said
    assert said.count("\n") == 1
    assert "s3cret-key" not in said
    assert not (tmp_path / "run").exists()


def test_nothing_that_may_have_been_generated_is_sent_again(ask):
    with serve(some(status=500, rate=1.0)) as served:
        ask(served, *TIMEOUT)
        assert served.server.num_liable == 27


def test_a_redirect_is_not_followed_and_takes_no_key_along(ask):
    with serve(CLEAN) as other, serve(server(redirect_to=other.root)) as served:
        code, said = ask(served, *TIMEOUT, "--api-key-env", "PLANTED_KEY")
        assert code == USAGE
        assert "redirects to http://127.0.0.1" in said
        assert other.server.seen == []


def test_a_key_goes_to_the_api_and_nowhere_else(ask, tmp_path):
    with serve(server(api_key="s3cret-key")) as served:
        code, said = ask(served, *TIMEOUT, "--api-key-env", "PLANTED_KEY")
    assert code == 0, said
    assert {headers.get("Authorization") for _, headers in served.server.seen} == {
        "Bearer s3cret-key"
    }
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written
    for text in (said, *(path.read_text(encoding="utf-8") for path in written)):
        assert "s3cret-key" not in text


def test_a_batch_is_of_the_size_that_was_asked_for(ask):
    with serve(CLEAN) as served:
        ask(served, *TIMEOUT)
        assert served.server.engine.counters.largest_batch == 8
