"""The program itself: its help, and one clear sentence for whatever goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from sweeps import few

from detcheck import __version__
from detcheck.cli import app
from detcheck.cli.bug import write_report
from detcheck.errors import DetcheckError, MeasurementError, StorageError, UsageError

from .conftest import PROGRAM


@pytest.fixture
def raising(monkeypatch):
    """Let `detcheck env` raise."""

    def plant(error: BaseException) -> None:
        def command() -> None:
            raise error

        monkeypatch.setattr("detcheck.cli.env.env_command", command)

    return plant


def test_help_lists_every_command(program):
    result = program("--help")
    assert result.code == 0
    for name, lazy in app.COMMANDS.items():
        assert name in result.out
        assert lazy.summary in result.out


@pytest.mark.parametrize("name", app.COMMANDS)
def test_a_command_opens_as_the_list_says(detcheck, name):
    result = detcheck(name, "--help")
    assert result.code == 0
    opening = " ".join(app.COMMANDS[name].summary.split()[:3])
    assert opening in " ".join(result.out.split())


@few("args", [["--help"], *([name, "--help"] for name in app.COMMANDS)])
def test_help_is_quick(args):
    """0.3 s; on a machine that is busy with other work, in proportion to bare Typer there."""
    pairs = ((seconds("-c", "import typer"), seconds("-m", "detcheck", *args)) for _ in range(3))
    assert any(mine < max(0.3, 4 * bare) for bare, mine in pairs)


def seconds(*args: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - start


def test_version(detcheck):
    assert detcheck("--version").out == f"detcheck {__version__}\n"


def test_no_command_is_not_green(detcheck):
    result = detcheck()
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("Usage: detcheck")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gat"], "No such command 'gat'. Did you mean 'gate'"),
        (["--nope"], "No such option: --nope"),
        (["gate"], "Missing argument 'RUN' (see `detcheck gate --help`)"),
        (["gate", "x", "--max-distinct", "many"], "Invalid value for '--max-distinct'"),
        (["compare", "x"], "Missing argument 'B'"),
        (["env", "--device", "tpu"], "Invalid value for '--device'"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(detcheck, args, words):
    result = detcheck(*args)
    assert result.code == 2
    assert words in result.only_sentence
    assert result.err.startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("Say what to ask."), 2),
        (MeasurementError("Nothing came back."), 3),
        (StorageError("The disk is full."), 3),
    ],
)
def test_an_error_of_ours_is_its_sentence(detcheck, raising, error: DetcheckError, code):
    raising(error)
    result = detcheck("env")
    assert (result.code, result.only_sentence) == (code, f"error: {error}\n")


def test_what_nobody_expected_is_called_a_bug(detcheck, raising):
    raising(ZeroDivisionError("division by zero"))
    result = detcheck("env")
    assert result.code == 3
    assert "bug in detcheck (ZeroDivisionError: division by zero)" in result.only_sentence
    assert "DETCHECK_DEBUG=1" in result.err


def test_a_bug_is_reported_in_a_file_without_secrets(detcheck, raising, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SOME_API_KEY", "sk-do-not-show")
    raising(ZeroDivisionError("the reply held sk-do-not-show"))
    header = ("--header", "X-Tenant: also-secret")
    result = detcheck("env")
    (report,) = tmp_path.glob("detcheck-bug-*.txt")
    text = report.read_text(encoding="utf-8")
    assert str(report) in result.err
    for words in ("command: detcheck env", "Traceback", "ZeroDivisionError", "torch"):
        assert words in text
    assert "sk-do-not-show" not in text
    shown = write_report(ValueError("x"), ["run", *header, "--header=Y: also-secret"])
    assert "also-secret" not in shown.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [("detcheck ga", 1, "gate"), ("detcheck run --ba", 2, "--batch-sizes")],
)
def test_the_shell_completes_commands_and_options(words, index, expected):
    environment = os.environ | {
        "_DETCHECK_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(index),
    }
    done = subprocess.run(
        PROGRAM, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.split() == [expected]


def test_a_traceback_is_shown_where_it_is_asked_for(detcheck, raising, monkeypatch):
    raising(ZeroDivisionError())
    monkeypatch.setenv("DETCHECK_DEBUG", "1")
    result = detcheck("env")
    assert result.code == 3
    assert "Traceback (most recent call last)" in result.err


def test_what_the_system_refuses_is_no_bug(detcheck, raising):
    raising(PermissionError(13, "Permission denied", "some/file"))
    result = detcheck("env")
    assert result.code == 3
    assert result.only_sentence == "error: The system refused (some/file): Permission denied.\n"


def test_an_interrupt_is_130_and_a_sentence(detcheck, raising):
    raising(KeyboardInterrupt())
    result = detcheck("env")
    assert result.code == 130
    assert result.only_sentence.startswith("interrupted")


def test_words_of_others_cannot_steer_the_terminal(detcheck, raising):
    raising(UsageError("bad \x1b[2J name\nnext\u202e"))
    assert detcheck("env").only_sentence == "error: bad \\x1b[2J name↵next\\u202e\n"


def test_ctrl_c_through_the_real_program(tmp_path):
    code = (
        # Started in the background, a process may inherit SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time, detcheck.cli.env as env\n"
        "def command():\n    print('started', flush=True)\n    time.sleep(30)\n"
        "env.env_command = command\n"
        "import sys; sys.argv = ['detcheck', 'env']\n"
        "from detcheck.cli.app import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted.\n"


@pytest.mark.sweep
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_closed_pipe_is_quiet(tmp_path, good: Path, json):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*PROGRAM, "gate", str(good), *json],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.sweep
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_sentence(tmp_path, good: Path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "gate", str(good), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
        )
    assert done.returncode == 3
    assert done.stderr == "error: The system refused: No space left on device.\n"


@pytest.mark.sweep
def test_a_terminal_without_unicode_is_no_bug(program, good):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    result = program("compare", good, good, env=environment)
    assert (result.code, result.err) == (0, "")
