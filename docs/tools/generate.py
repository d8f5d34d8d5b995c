"""Writes the parts of the site that are taken from the program, so that they cannot go stale.

    python docs/tools/generate.py            # write them
    python docs/tools/generate.py --check    # write nothing; exit 1 and name the stale pages

`docs/reference/commands.md` is written as a whole. In other pages, and in the README, only the text
between two comments is written:

- between `<!-- fields: package.module:Struct -->` and `<!-- end -->`, a table of the fields;
- between `<!-- output: detcheck gate RUN … -->` and `<!-- end -->`, what the command prints;
- between `<!-- table: RUN -->` and `<!-- end -->`, the table with which `detcheck run` ended.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

DOCS = Path(__file__).resolve().parents[1]
COMMANDS_PAGE = DOCS / "reference" / "commands.md"
HEAD = """# Commands

Generated from the program by `make docs`; `detcheck COMMAND --help` prints the same.

Results go to stdout; progress and messages go to stderr. Exit codes of every command:

| code | meaning |
|---|---|
| 0 | done, or the gate passed |
| 1 | the gate failed |
| 2 | the command line or a file is wrong |
| 3 | the verdict is inconclusive, or nothing could be measured |
| 130 | interrupted by Ctrl-C |
"""
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
BLOCK = re.compile(r"(<!-- (fields|output|table): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
AGE = re.compile(r", [\w ]+ ago$", re.MULTILINE)


def main() -> int:
    """Write the stale pages, or only name them; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages() if not _is(path, text)}
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(DOCS.parent)} {'is stale' if check else 'written'}")
    if check and stale:
        print("Run `make docs` and commit the pages.", file=sys.stderr)
    return int(check and bool(stale))


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with generated parts, and the text that it must have."""
    yield COMMANDS_PAGE, commands_page()
    for path in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            yield path, BLOCK.sub(_block, text)


def commands_page() -> str:
    """The command reference as Markdown, a section for each command."""
    from detcheck.cli.app import COMMANDS, load_command

    sections = [section for name in COMMANDS for section in _sections(load_command(name), name)]
    return "\n".join((HEAD, *sections))


def _sections(command: Any, name: str, parents: Any = None) -> Iterator[str]:
    """The section of one command, and those of its subcommands."""
    context = command.make_context(name, [], parent=parents, resilient_parsing=True)
    title = f"detcheck {context.command_path.removeprefix('detcheck ')}"
    usage = " ".join((title, *command.collect_usage_pieces(context)))
    text = textwrap.dedent(command.help or "").strip()
    yield f"## {title}\n\n{text}\n\n```text\n{usage}\n```\n"
    yield "\n".join(_options(command, context))
    for each in getattr(command, "commands", {}):
        yield from _sections(command.commands[each], each, context)


def _options(command: Any, context: Any) -> Iterator[str]:
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    if any(records):
        yield "| option | meaning |\n|---|---|"
    for names, meaning in filter(None, records):
        bare = re.sub(r" <[a-z]+>$", "", names)  # the type of an argument is clear from its name
        flags_marked = FLAG.sub(r"`\g<0>`", _cell(meaning))
        yield f"| {_code(bare)} | {flags_marked} |"
    yield ""


def _block(match: re.Match[str]) -> str:
    """One generated part between its marks."""
    head, kind, subject, _, end = match.groups()
    make = {"fields": _fields, "output": output, "table": run_table}[kind]
    return f"{head}{make(subject)}{end}"


def output(command: str) -> str:
    """A command of detcheck and its standard output, without ages, as a block of code."""
    from detcheck.cli.app import run_program

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(DOCS.parent):
        run_program(shlex.split(command)[1:])
    text = AGE.sub("", printed.getvalue())
    return f"```console\n$ {command}\n{text}```\n"


def run_table(folder: str) -> str:
    """The table with which the run in `folder` ended, at 80 columns, as a block of code."""
    from rich.console import Console

    import detcheck
    from detcheck.report.tables import summary_table

    run = detcheck.load(DOCS.parent / folder)
    printed = io.StringIO()
    Console(file=printed, width=80, no_color=True).print(summary_table(detcheck.analyse(run)))
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _fields(subject: str) -> str:
    module, _, name = subject.partition(":")
    return fields_table(getattr(importlib.import_module(module), name))


def fields_table(kind: type[msgspec.Struct]) -> str:
    """The fields of a Struct as a Markdown table.

    Raises ValueError if a field has neither a help text nor a docstring.
    """
    hints = get_type_hints(kind, include_extras=True)
    rows = ["| field | meaning | type | default |", "|---|---|---|---|"]
    for info in msgspec.structs.fields(kind):
        hint = hints[info.name]
        meaning = help_text(hint) or docstrings(kind).get(info.name) or only_value(hint)
        if not meaning:
            raise ValueError(f"{kind.__name__}.{info.name} has no docstring: write one.")
        meaning = re.sub(r"\bNone\b", "null", meaning)
        cells = (f"`{info.name}`", meaning, type_name(hint), _default(info))
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows) + "\n"


def help_text(hint: Any) -> str:
    """The help text of a field that the command line has an option for; empty for others."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    option = next((extra for extra in extras if hasattr(extra, "help")), None)
    if option is None:
        return ""
    default = f" By default {option.default}." if option.default else ""
    return f"{option.help}{default}"


def only_value(hint: Any) -> str:
    """The meaning of a field that has only one value; empty for others."""
    values = get_args(hint) if get_origin(hint) is Literal else ()
    return f"Always `{values[0]}`." if len(values) == 1 else ""


@cache
def docstrings(kind: type[Any]) -> dict[str, str]:
    """The docstrings that follow the fields of a class and of its bases, by field."""
    found: dict[str, str] = {}
    structs = [base for base in kind.__mro__ if isinstance(base, msgspec.StructMeta)]
    for each in reversed([base for base in structs if base is not msgspec.Struct]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                value = getattr(after, "value", None)
                if isinstance(after, ast.Expr) and isinstance(value, ast.Constant):
                    found[field.target.id] = " ".join(str(value.value).split())
    return found


WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Path: "text (a path)",
}
"""Types as JSON has them."""


def type_name(hint: Any) -> str:
    """A type in words, such as `list of integer` or `number or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "object" if arguments[1] is Any else f"object of {type_name(arguments[1])}"
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    kept = [argument for argument in arguments if argument is not msgspec.UnsetType]
    return " or ".join(map(type_name, kept)) if kept else _plain_type(hint)


def _plain_type(kind: type[Any]) -> str:
    """A type without arguments; a Struct links to its own section of the page."""
    return WORDS.get(kind) or f"[{kind.__name__}](#{kind.__name__.lower()})"


def _default(info: Any) -> str:
    if info.default_factory is not msgspec.NODEFAULT:
        return "empty"
    if info.default is msgspec.NODEFAULT:
        return "–"
    if info.default in (None, (), "", msgspec.UNSET) or isinstance(info.default, msgspec.Struct):
        return "null" if info.default is None else "empty"
    value = msgspec.json.encode(info.default).decode()
    return f"`{value}`"


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table: one line, bars escaped, angle brackets kept."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """Text as code in a cell: a bar in backticks is read differently by different renderers."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{text.replace('<', '&lt;').replace('|', '&#124;<wbr>')}</code>"


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
