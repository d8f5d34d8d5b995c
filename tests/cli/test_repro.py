"""`detcheck trace --repro`: bad input is refused in one sentence before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers.faults import Faults
from servers.running import serve

from detcheck.probes import trace as trace_module

from .test_trace import found


@pytest.fixture
def untraced(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("traced in vain")

    monkeypatch.setattr(trace_module, "trace", refuse)


def test_a_folder_with_files_is_refused(detcheck, untraced):
    Path("there").mkdir()
    Path("there/notes.txt").write_text("keep me")
    result = detcheck("trace", "-p", "Hi", "--repro", "there")
    assert result.code == 2
    assert result.only_sentence == ("error: there is not empty: choose another --repro.\n")


def test_a_folder_that_cannot_be_made_is_refused(detcheck, untraced):
    Path("file").write_text("")
    result = detcheck("trace", "-p", "Hi", "--repro", "file/repro")
    assert result.code == 2
    assert "file is not a folder" in result.only_sentence
    assert "--repro" in result.only_sentence


def test_no_differing_op_writes_nothing(detcheck, monkeypatch):
    monkeypatch.setattr(trace_module, "trace", lambda *args: found(None))
    result = detcheck("trace", "-p", "Hi", "--repro", "repro", "--json")
    assert result.code == 3
    assert "nothing to recreate" in result.err
    assert not Path("repro").exists()


def test_a_scripted_run_is_refused(detcheck, planted_run):
    result = detcheck("trace", planted_run().path, "--repro", "repro")
    assert result.code == 2
    assert "has no ops to trace" in result.only_sentence
    assert "written by --repro DIR" in result.only_sentence


def test_a_servers_run_is_written_as_a_burst(detcheck):
    with serve(Faults(quiet_s=0.002, answer_tokens=6, flip_at=3)) as served:
        asked = ("-b", "1,8", "-n", "24", "--max-new-tokens", "6")
        assert detcheck("run", "--endpoint", served.url, *asked, "-o", "run").code == 0
        assert detcheck("trace", "run").code == 2
        result = detcheck("trace", "run", "--repro", "repro", "--json")
    assert result.code == 0
    assert [Path(path).name for path in json.loads(result.out)["written"]] == [
        *("repro.py", "environment.txt", "issue.md")
    ]
    assert "read them before you publish them" in result.err
