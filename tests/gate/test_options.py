"""Options from the command line and from pyproject.toml, and what is refused in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from detcheck.errors import UsageError
from detcheck.gate.options import GateOptions, read_options, split_kernels
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK


@pytest.fixture
def pyproject(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "pyproject.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_no_file_and_no_table_ask_for_nothing(tmp_path, pyproject):
    assert read_options(tmp_path / "pyproject.toml") == GateOptions()
    assert read_options(pyproject("[project]\nname = 'x'\n")) == GateOptions()


def test_every_key_is_read(tmp_path, pyproject):
    options = read_options(
        pyproject(
            "[tool.detcheck.gate]\nmax-distinct = 3\nbaseline = 'runs/good'\n"
            "kernels = ['stock', 'batch-invariant']\n"
        )
    )
    assert options == GateOptions(3, tmp_path / "runs/good", (STOCK, BATCH_INVARIANT))


def test_underscores_are_hyphens(pyproject):
    assert read_options(pyproject("[tool.detcheck.gate]\nmax_distinct = 3\n")).max_distinct == 3


def test_the_command_line_wins(pyproject):
    file = read_options(pyproject("[tool.detcheck.gate]\nmax-distinct = 3\nkernels = 'stock'\n"))
    assert GateOptions(max_distinct=1).over(file) == GateOptions(1, None, (STOCK,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.detcheck.gate]\nmax-distict = 3\n", "unknown key 'max-distict'"),
        ("[tool.detcheck.gate]\nmax-distinct = 0\n", "at least 1, not 0"),
        ("[tool.detcheck.gate]\nmax-distinct = true\n", "whole number"),
        ("[tool.detcheck.gate]\nmax-distinct = '1'\n", "whole number"),
        ("[tool.detcheck.gate]\nbaseline = 1\n", "path of a run"),
        ("[tool.detcheck.gate]\nkernels = 1\n", "list of names"),
        ("[tool.detcheck.gate]\nkernels = []\n", "names none"),
        ("[tool.detcheck.gate]\nkernels = 'fast'\n", "Unknown kernels 'fast'"),
        ("[tool]\ndetcheck = 1\n", "must be a table"),
        ("[tool.detcheck]\ngate = [1]\n", "must be a table"),
        ("tool = 3\n", "must be a table"),
        ("[tool.detcheck.gate\n", "not valid TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused(pyproject, text, words):
    with pytest.raises(UsageError, match=words):
        read_options(pyproject(text))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_options(tmp_path / "pyproject.toml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_options(tmp_path / "pyproject.toml")


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (GateOptions(), 1),
        (GateOptions(max_distinct=5), 5),
        (GateOptions(baseline=Path("x")), None),
        (GateOptions(max_distinct=1, baseline=Path("x")), 1),
    ],
)
def test_the_limit_is_one_unless_something_was_asked_for(options, limit):
    assert options.limit == limit


@pytest.mark.parametrize(
    ("available", "judged"),
    [
        ((STOCK, BATCH_INVARIANT), BATCH_INVARIANT),
        ((STOCK,), STOCK),
        (("batch-invariant:matmul",), "batch-invariant:matmul"),
        ((STOCK, "batch-invariant:matmul", BATCH_INVARIANT), BATCH_INVARIANT),
    ],
)
def test_the_kernels_judged_unless_named(available, judged):
    assert GateOptions().kernels_of(available) == (judged,)


def test_kernels_are_not_guessed():
    with pytest.raises(UsageError, match="--kernels batch-invariant:matmul"):
        GateOptions().kernels_of((STOCK, "batch-invariant:matmul"))


def test_kernels_that_a_run_lacks_are_refused():
    with pytest.raises(UsageError, match="no batch-invariant kernels, only stock"):
        GateOptions(kernels=(BATCH_INVARIANT,)).kernels_of((STOCK,))


@pytest.mark.parametrize("number", [0, -1])
def test_a_limit_below_one_is_refused(number):
    with pytest.raises(UsageError, match=f"at least 1, not {number}"):
        GateOptions(max_distinct=number)


def test_lists_of_kernels_are_split_once_each():
    assert split_kernels("stock, batch-invariant,stock") == (STOCK, BATCH_INVARIANT)
    assert split_kernels(" , ") == ()
