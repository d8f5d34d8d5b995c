"""What a page shows can be typed: commands parse, code compiles, imports and files are found."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from blocks import ROOT, Block, blocks, commands, mentions

import detcheck
from detcheck.cli.app import COMMANDS, load_command
from detcheck.cli.settings import find_settings as settings
from detcheck.errors import UsageError
from detcheck.pytest_plugin import Determinism

SHELL = [(block.place, command) for block in blocks("sh", "console") for command in commands(block)]
GIVEN = {"detcheck", "inputs", "model"}
"""Names that an example may use without defining them."""
OTHER_PROGRAMS = {"pip", "python", "git", "echo", "pre-commit"}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def each(found: list[Block]) -> list[object]:
    return [pytest.param(block, id=block.place) for block in found]


@pytest.mark.parametrize(
    "command", [pytest.param(command, id=f"{place} {command[:30]}") for place, command in SHELL]
)
def test_a_command_can_be_typed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    ["detcheck run --fly", "detcheck fly", "make fly", "python experiments/fly.py", "rm x"],
)
def test_a_wrong_command_is_noticed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above."""
    with pytest.raises(Exception, match=r".+"):
        check_command(command, monkeypatch)


@pytest.mark.parametrize(
    "command", [pytest.param(command, id=f"{page} {command}") for page, command in mentions()]
)
def test_a_mentioned_command_is_there(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a sentence, arguments may be missing: `detcheck gate --baseline`."""
    check_mention(command, monkeypatch)


@pytest.mark.parametrize("command", ["detcheck fly", "detcheck gate --fly", "make fly"])
def test_a_wrong_mention_is_noticed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above."""
    with pytest.raises(AssertionError):
        check_mention(command, monkeypatch)


def check_mention(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, name, *rest = shlex.split(command)
    if program != "detcheck":
        check_command(command, monkeypatch)
    elif not name.startswith("-"):
        assert name in COMMANDS
        known = {flag for option in load_command(name).params for flag in option.opts}
        assert {word for word in rest if word.startswith("-")} <= known | {"--help"}


def check_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise if the program would refuse `command` as it stands."""
    program, *arguments = shlex.split(command)
    if program == "detcheck":
        assert arguments[0] in COMMANDS, f"{arguments[0]} is no command"
        load_command(arguments[0]).make_context(arguments[0], arguments[1:])
    elif program == "make":
        for target in (word for word in arguments if "=" not in word):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no target {target}"
    elif program == "python" and arguments[0].startswith("experiments/"):
        check_experiment(arguments, monkeypatch)
    else:
        assert program in OTHER_PROGRAMS, f"not tested: {program}"


def check_experiment(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of an experiment as it would parse them itself."""
    assert (ROOT / arguments[0]).is_file()
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setattr(sys, "argv", arguments)
    parse = getattr(importlib.import_module(Path(arguments[0]).stem), "arguments", None)
    if parse is not None:
        parse()


@pytest.mark.parametrize("block", each(blocks("python")))
def test_python_compiles_and_its_names_are_found(block: Block) -> None:
    assert unknown_names(block.text) == []


def test_a_wrong_name_is_noticed() -> None:
    """The twin of the test above."""
    text = "import detcheck\nfrom detcheck.targets import Nothing\ndetcheck.fly(undefined)\n"
    assert unknown_names(text) == ["detcheck.targets.Nothing", "detcheck.fly", "undefined"]


def unknown_names(text: str) -> list[str]:
    """Names that a Python example uses and that are neither defined nor importable."""
    nodes = list(ast.walk(ast.parse(text)))
    fixture = any(isinstance(node, ast.arg) and node.arg == "detcheck" for node in nodes)
    ours = Determinism if fixture else detcheck
    known = {name for node in nodes for name in defined(node)} | set(dir(builtins)) | GIVEN
    return [name for node in nodes for name in not_importable(node, ours)] + [
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in known
    ]


def defined(node: ast.AST) -> Iterator[str]:
    """Names that one statement or expression defines."""
    match node:
        case ast.Import(names=names):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)
        case ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name for alias in names)
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ExceptHandler(name=str(name)):
            yield name
        case ast.arg(arg=name):
            yield name
        case ast.Name(id=name, ctx=ast.Store()):
            yield name


def not_importable(node: ast.AST, ours: object) -> Iterator[str]:
    """What one node imports and is not there, or takes from `detcheck` (the value `ours`)."""
    match node:
        case ast.Import(names=names):
            for alias in names:
                importlib.import_module(alias.name)
        case ast.ImportFrom(module=str(module), names=names):
            source = importlib.import_module(module)
            yield from (f"{module}.{a.name}" for a in names if not hasattr(source, a.name))
        case ast.Attribute(value=ast.Name(id="detcheck"), attr=name):
            if not hasattr(ours, name):
                yield f"detcheck.{name}"


@pytest.mark.parametrize("block", each(blocks("toml")))
def test_an_experiment_file_is_accepted(block: Block, tmp_path: Path) -> None:
    assert settings(written(block.text, tmp_path)).values


def test_a_wrong_experiment_file_is_noticed(tmp_path: Path) -> None:
    """The twin of the test above."""
    with pytest.raises(UsageError, match="max-distinkt"):
        settings(written("[gate]\nmax-distinkt = 1\n", tmp_path))


def written(text: str, folder: Path) -> Path:
    file = folder / ("pyproject.toml" if "[tool." in text else "detcheck.toml")
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("block", each(blocks("yaml", "json")))
def test_data_can_be_read(block: Block) -> None:
    assert json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text)


@pytest.mark.parametrize("block", each(blocks("yaml")))
def test_the_commands_of_a_workflow_can_be_typed(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in yaml.safe_load(block.text).get("jobs", {}).values():
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                check_command(line, monkeypatch)
