"""The program `detcheck`: its commands, and how errors become one sentence and an exit code.

A command's module is imported when the command is called, so that `--help` stays quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from detcheck import __version__
from detcheck.errors import DetcheckError, ExitCode
from detcheck.text import one_line

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""
PIPE_CLOSED = 141
"""Exit code if the reader of stdout has gone: 128 + SIGPIPE."""
PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # rich's help takes as long as all the rest of --help
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """The place of a command's function, and its line in `detcheck --help`."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "run": LazyCommand(
        "detcheck.cli.run",
        "run_command",
        "Ask the same question under varying load and keep every answer.",
    ),
    "gate": LazyCommand(
        "detcheck.cli.gate", "gate_command", "Judge a run: pass, fail or inconclusive."
    ),
    "baseline": LazyCommand(
        "detcheck.cli.baseline",
        "baseline_command",
        "Accept the answers of a run, in a small file to commit.",
    ),
    "compare": LazyCommand(
        "detcheck.cli.compare", "compare_command", "Compare two runs or evaluations: do they agree?"
    ),
    "report": LazyCommand(
        "detcheck.cli.report",
        "report_command",
        "Write the results of each run: HTML, Markdown, CSV, figures.",
    ),
    "ops": LazyCommand(
        "detcheck.cli.ops",
        "ops_command",
        "Show which op breaks which invariance on this machine.",
    ),
    "trace": LazyCommand(
        "detcheck.cli.trace",
        "trace_command",
        "Name the first op that gave a request other bits in a batch.",
    ),
    "mismatch": LazyCommand(
        "detcheck.cli.mismatch",
        "mismatch_command",
        "Compare a sampler's log-probabilities with a trainer's.",
    ),
    "coverage": LazyCommand(
        "detcheck.cli.coverage",
        "coverage_command",
        "Show which ops of a model the batch-invariant kernels cover.",
    ),
    "ci": LazyCommand(
        "detcheck.cli.ci", "ci_command", "Measure the experiment file, judge it, and write reports."
    ),
    "model": LazyCommand(
        "detcheck.cli.model", "model_command", "Install the embedded model into this environment."
    ),
    "env": LazyCommand(
        "detcheck.cli.env", "env_command", "Show the machine and settings that change numerics."
    ),
}


class LazyGroup(TyperGroup):
    """Lists commands by name and summary; imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if name is None else load_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        # Typer would end both by itself: without a message, or with exit code 1.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _drop(sys.stdout, sys.stderr)
            raise typer.Exit(PIPE_CLOSED) from None


def load_command(name: str) -> Any:
    """Import the module of command `name` and build the command."""
    lazy = COMMANDS[name]
    function = getattr(importlib.import_module(lazy.module), lazy.function)
    single = typer.Typer(**PLAIN)
    single.command(name)(function)
    return typer.main.get_command(single)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"detcheck {__version__}")
        raise typer.Exit(ExitCode.OK)


def _show_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        print(ctx.get_help())
        raise typer.Exit(ExitCode.OK)


def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    # Typer's own help option imports pydantic, without need, whenever a command is called.
    show_help: Annotated[
        bool,
        typer.Option(
            "-h", "--help", callback=_show_help, is_eager=True, help="Show this message and exit."
        ),
    ] = False,
) -> None:
    """Does an LLM give the same answer when only the load around the request changes?

    If not: how many answers there are, where they diverge, and what it costs to make them one.

    Exit codes: 0 done or passed, 1 gate failed, 2 usage, 3 inconclusive or not measured.
    """
    if ctx.invoked_subcommand is None:
        # Not 0: a CI job without a command must not be green.
        print(ctx.get_help(), file=sys.stderr)
        raise typer.Exit(ExitCode.USAGE)


def build() -> Any:
    """The whole program as one command object."""
    options = PLAIN | {"add_completion": True}
    app = typer.Typer(cls=LazyGroup, invoke_without_command=True, **options)
    app.callback(add_help_option=False)(_root)
    for name, lazy in COMMANDS.items():
        app.command(name, help=lazy.summary)(_listed_only)
    return typer.main.get_command(app)


def _listed_only() -> None:
    """Stands for a command in the list; `LazyGroup` replaces it by the real one."""


def run_program(args: list[str] | None = None) -> int:
    """Run the command line `args` (None: the process's own) and return its exit code."""
    try:
        result = build().main(args=args, prog_name="detcheck", standalone_mode=False)
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else ExitCode.OK
    except BrokenPipeError:
        _drop(sys.stdout, sys.stderr)
        return PIPE_CLOSED
    except Exception as error:
        if os.environ.get("DETCHECK_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        code, sentence = explain(error, sys.argv[1:] if args is None else args)
        print(f"error: {one_line(sentence)}", file=sys.stderr)
        _flush_or_drop(sys.stdout)
        return code


def explain(error: Exception, args: list[str]) -> tuple[int, str]:
    """Exit code and one sentence for the error that stopped the command `args`."""
    if isinstance(error, DetcheckError):
        from detcheck.cli.options import with_flags

        return error.exit_code, with_flags(str(error), of_file=args[:1] == ["ci"])
    # The base class of Typer's usage errors has moved between versions; this method has not.
    if hasattr(error, "format_message"):
        return ExitCode.USAGE, _usage_sentence(error)
    if isinstance(error, OSError) and error.errno is not None:
        file = f" ({error.filename})" if error.filename else ""
        return ExitCode.INCONCLUSIVE, f"The system refused{file}: {error.strerror}."
    from detcheck.cli.bug import write_report

    report = write_report(error, args)
    attach = f" and attach {report}" if report is not None else ""
    return ExitCode.INCONCLUSIVE, (
        f"This is a bug in detcheck ({type(error).__name__}: {error}): please report it{attach}; "
        "DETCHECK_DEBUG=1 shows the traceback."
    )


def _usage_sentence(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "detcheck"
    return f"{error.format_message().rstrip('.')} (see `{command} --help`)."


def _flush_or_drop(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        _drop(stream)


def _drop(*streams: TextIO) -> None:
    """Write no more to `streams`: flushing them at exit would fail again, with a traceback."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:  # noqa: PTH123
            os.dup2(null.fileno(), stream.fileno())


def main() -> None:
    """Entry point of the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that has no encoding must not stop a run
            stream.reconfigure(errors="backslashreplace")
    sys.exit(int(run_program()))
