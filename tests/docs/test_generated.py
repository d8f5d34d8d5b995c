"""The parts of the site that are taken from the program are what the program says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import pytest

from detcheck.options import Option

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", name="generate")
def _generate() -> ModuleType:
    file = ROOT / "docs" / "tools" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_page_is_stale(generate: ModuleType) -> None:
    stale = [path.name for path, text in generate.pages() if path.read_text("utf-8") != text]
    assert stale == [], "run `make docs` and commit the pages"


def test_a_changed_option_makes_the_page_stale(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test above."""
    before = generate.commands_page()
    assert "`--junit FILE`" in before
    from detcheck.cli import app

    load = app.load_command

    def renamed(name: str) -> Any:
        command = load(name)
        for parameter in command.params:
            parameter.opts = [flag.replace("--junit", "--xml") for flag in parameter.opts]
        return command

    monkeypatch.setattr(app, "load_command", renamed)
    after = generate.commands_page()
    assert "`--junit FILE`" not in after
    assert "`--xml FILE`" in after


def test_every_command_has_its_section(generate: ModuleType) -> None:
    from detcheck.cli.app import COMMANDS

    page = generate.commands_page()
    for name in COMMANDS:
        assert f"\n## detcheck {name}\n" in page


class Sample(msgspec.Struct):
    """Fields of every kind."""

    size: int
    """In bytes."""
    names: tuple[str, ...] = ()
    """Of the files; None is never among them."""
    steps: Annotated[int | None, Option("Steps to take.", default="all of them")] = None


def test_a_row_for_each_field(generate: ModuleType) -> None:
    rows = generate.fields_table(Sample).splitlines()[2:]
    assert rows == [
        "| `size` | In bytes. | integer | – |",
        "| `names` | Of the files; null is never among them. | list of text | empty |",
        "| `steps` | Steps to take. By default all of them. | integer or null | null |",
    ]


class Silent(msgspec.Struct):
    """A field without a docstring."""

    size: int


def test_a_field_without_a_meaning_is_refused(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"Silent\.size has no docstring"):
        generate.fields_table(Silent)


def test_every_record_of_a_run_is_described(generate: ModuleType) -> None:
    """Each Struct that `run.json` and the other files are made of has its table on the page."""
    page = (ROOT / "docs" / "reference" / "run-directory.md").read_text(encoding="utf-8")
    described = {match[3].partition(":")[2] for match in generate.BLOCK.finditer(page)}
    from detcheck import evidence
    from detcheck.rundir import files, records

    structs = {
        name
        for module in (evidence, files, records)
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == module.__name__
    }
    assert structs == described
