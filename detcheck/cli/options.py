"""Command-line options made of the fields of an experiment and the targets, and back.

Types, defaults and help texts are stated once, in the structures; see `detcheck.options`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from inspect import Parameter, Signature
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer

from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.gate.options import GateOptions
from detcheck.options import Field, choices_of, fields_of
from detcheck.targets import TARGETS, engines

F = TypeVar("F", bound=Callable[..., Any])
HIDDEN_ENGINES = ("scripted",)
OTHER_FLAGS = {
    "answer": "--answer",
    "api_key_env": "--api-key-env",
    "baseline": "--baseline",
    "bitwise": "--bitwise",
    "check_timeout_s": "--check-timeout",
    "control": "--control",
    "github_summary": "--github-summary",
    "headers": "--header",
    "junit": "--junit",
    "level": "--level",
    "budget": "--budget",
    "max_age": "--max-age",
    "max_accuracy_spread": "--max-accuracy-spread",
    "max_answer_flips": "--max-answer-flips",
    "max_distinct": "--max-distinct",
    "max_k3": "--max-k3",
    "model": "MODEL",
    "min_comparisons": "--min-comparisons",
    "min_tokens": "--min-tokens",
    "out": "--out",
    "prompts": "--prompts",
    "repro": "--repro",
    "require_control": "--require-control",
    "resume": "--resume",
    "rollouts": "--rollouts",
    "shapes_from": "--shapes-from",
    "total_s": "--timeout",
    "trainer_kernels": "--trainer-kernels",
    "trainer_model": "--trainer-model",
}
"""Arguments that messages name and that are fields of no structure here."""
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)(?:=\"?([^`\"]*)\"?)?`")


@cache
def target_fields() -> tuple[Field, ...]:
    """The fields of every target, each name once; the choices of `engine` are those of all."""
    found: dict[str, Field] = {}
    for kind in TARGETS:
        for field in fields_of(kind):
            found.setdefault(field.name, field)
    return tuple(found.values())


def all_fields() -> tuple[Field, ...]:
    """Every field that `detcheck run` has an option for."""
    return (*fields_of(Experiment), *target_fields())


def flag_of(field: Field) -> str:
    """The long flag of a field, such as `--batch-sizes`."""
    long = next((flag for flag in field.option.flags if flag.startswith("--")), None)
    return long or "--" + field.name.replace("_", "-")


def with_flags(message: str, *, of_file: bool = False) -> str:
    """A library's message with the arguments that it names in backticks written as flags.

    If `of_file` is true, those that an experiment file holds are written as its keys, for
    `detcheck ci`, which has options for few of them.
    """
    flags = {field.name: flag_of(field) for field in all_fields()} | OTHER_FLAGS
    keys = {field.name for field in all_fields()} | set(GateOptions.__struct_fields__)

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if of_file and name in keys and name != "baseline":
            return _as_key(name, value)
        if name not in flags:
            return match.group()
        given = value not in (None, "", "True", "False")
        return flags[name] + (f" {shlex.quote(value)}" if given else "")

    return _ARGUMENT.sub(flag, message)


def _as_key(name: str, value: str | None) -> str:
    """A field as a key of an experiment file, with its value if there is one."""
    key = name.replace("_", "-")
    if not value:
        return f"`{key}`"
    literal = {"True": "true", "False": "false"}.get(value)
    if literal is None:
        literal = value if re.fullmatch(r"[\d.]+", value) else f'"{value}"'
    return f"`{key} = {literal}`"


def parameters(fields: Iterable[Field]) -> list[Parameter]:
    """One keyword parameter, as Typer reads it, for each field; None or False if not given."""
    return [_parameter(field) for field in fields]


def takes(*added: Parameter) -> Callable[[F], F]:
    """Give a command the parameters `added` in the place of its `**given`."""

    def decorate(command: F) -> F:
        own = [
            parameter
            for parameter in Signature.from_callable(command, eval_str=True).parameters.values()
            if parameter.kind is not Parameter.VAR_KEYWORD
        ]
        every = [*own, *added]
        command.__signature__ = Signature(every)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return command

    return decorate


def values(fields: Iterable[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given on the command line, in the types of the structures."""
    read = {
        field.name: _value(field, given[field.name])
        for field in fields
        if given.get(field.name) is not None and given[field.name] is not False
    }
    return {name: value for name, value in read.items() if value is not None}


def _parameter(field: Field) -> Parameter:
    kind, option = _command_line_type(field), field.option
    short = [flag for flag in option.flags if not flag.startswith("--")]
    default: Any = False if kind is bool else None
    settings: dict[str, Any] = {"help": _help(field), "show_default": False}
    if kind is not bool:
        settings["metavar"] = option.metavar or _metavar(field)
    wanted: Any = kind if kind is bool else kind | None
    annotation = Annotated[wanted, typer.Option(*short, flag_of(field), **settings)]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _help(field: Field) -> str:
    if field.type is bool:
        return field.option.help
    default = field.option.default
    if not default and isinstance(field.default, tuple):
        default = ",".join(map(str, field.default))
    elif not default and field.default is not None:
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    return f"{field.option.help} [default: {default}]" if default else field.option.help


def _metavar(field: Field) -> str:
    if field.name == "engine":
        return "|".join(name for name in engines() if name not in HIDDEN_ENGINES)
    return "|".join(choices_of(field.type)) or "TEXT"


def _command_line_type(field: Field) -> Any:
    bare = field.type
    if get_origin(bare) in (Union, UnionType):
        bare = next(kind for kind in get_args(bare) if kind is not type(None))
    if get_origin(bare) is tuple:
        return list[str] if field.option.repeatable else str
    return bare if bare in (int, float, bool) else str


def _value(field: Field, given: Any) -> Any:
    if field.type is bool:
        return not field.default
    if get_origin(field.type) is not tuple:
        return given
    if field.option.repeatable:
        return tuple(given) or None
    parts = [part.strip() for part in given.rstrip(",").split(",")]
    if get_args(field.type)[0] is not int:
        return tuple(parts)
    numbers = _numbers(field, parts)
    if field.name == "seeds" and "," not in given:
        return tuple(range(numbers[0]))
    return numbers


def _numbers(field: Field, parts: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in parts)
    except ValueError as error:
        raise UsageError(
            f"{field.name.replace('_', ' ').capitalize()} are whole numbers separated by commas, "
            f"such as 1,4,8, not {','.join(parts)!r}."
        ) from error
