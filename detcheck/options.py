"""The meaning of an experiment's and a target's fields, and a strict check of their types.

Each field states its type, default and help text once. The command line, the experiment file and
the check of a value from Python are all derived from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from detcheck.errors import UsageError

PLAIN_TYPES = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "nothing",
    "object": "a table",
    "str": "text",
}
"""msgspec's names of types, and the words for them."""


@dataclass(frozen=True, slots=True)
class Option:
    """How one field is explained, and how the command line asks for it."""

    help: str
    """One or two sentences."""
    flags: tuple[str, ...] = ()
    """A short flag such as `-n`; or a long one, which takes the place of the field's own name."""
    metavar: str = ""
    """The value's placeholder in the help text; empty if the type tells it."""
    repeatable: bool = False
    """If true, a list is given by repeating the flag; if false, by commas."""
    default: str = ""
    """The default in words, if the value itself would tell nothing."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a Struct as the command line sees it."""

    name: str
    type: Any
    """The type without its annotations."""
    default: Any
    option: Option


@cache
def hints_of(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    """The declared type of each field of a Struct, with its annotations."""
    return MappingProxyType(get_type_hints(kind, include_extras=True))


@cache
def fields_of(kind: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The fields of a Struct that carry an Option, in the order of their definition."""
    hints = hints_of(kind)
    found = []
    for info in msgspec.structs.fields(kind):
        hint = hints[info.name]
        if get_origin(hint) is not Annotated:
            continue
        bare, *extras = get_args(hint)
        option = next((extra for extra in extras if isinstance(extra, Option)), None)
        if option is not None:
            found.append(Field(info.name, bare, info.default, option))
    return tuple(found)


def check_types(value: msgspec.Struct) -> None:
    """Check every field against its declared type, and turn lists into tuples.

    A Struct made from Python checks nothing by itself. Call this in `__post_init__`. Raises
    UsageError, which names the field, if a value has another type or is not among the choices.
    """
    hints = hints_of(type(value))
    for name in value.__struct_fields__:
        given = getattr(value, name)
        try:
            settled = msgspec.convert(given, hints[name], strict=True)
        except msgspec.ValidationError as error:
            raise UsageError(_refusal(name, given, hints[name], str(error))) from error
        if settled is not given:
            msgspec.structs.force_setattr(value, name, settled)


def decode(kind: Any, data: Any, of: str) -> Any:
    """`data` (plain Python values) as a `kind`.

    `of` names the place for messages, such as `[experiment]`. Raises UsageError, which names the
    field, if a field is unknown or has another type.
    """
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{of}: {plain_error(str(error))}.") from error


def plain_error(message: str) -> str:
    """msgspec's message in plain words: `expected a whole number, got text, at `a[0]``."""
    path = re.search(r" - at `\$\.?(.*)`$", message)
    text = message[: path.start()] if path else message
    text = re.sub(r"`([^`]+)`", lambda match: _types_in_words(match[1]), text)
    text = text[:1].lower() + text[1:]
    return f"{text}, at `{path[1]}`" if path and path[1] else text


def _types_in_words(types: str) -> str:
    """`str | array | null` as `text or a list`: nobody gives nothing on purpose."""
    names = types.split(" | ")
    given = [name for name in names if name != "null"] or names
    return " or ".join(PLAIN_TYPES.get(name, f"`{name}`") for name in given)


def _refusal(name: str, given: Any, hint: Any, error: str) -> str:
    choices = choices_of(hint)
    if choices and isinstance(given, str):
        return f"Unknown {name.replace('_', ' ')} {given!r}: choose one of {', '.join(choices)}."
    expected = plain_error(error).partition(", at ")[0].removeprefix("expected ")
    wanted = expected.partition(", got ")[0]
    of = "each be" if isinstance(given, list | tuple) else "be"
    shown = repr(given) if len(repr(given)) <= 80 else repr(given)[:77] + "…"
    return f"`{name}` must {of} {wanted}, not {shown}."


def choices_of(hint: Any) -> tuple[str, ...]:
    """The allowed values of a Literal type; empty for other types."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    arguments = get_args(bare)
    return arguments if arguments and all(isinstance(a, str) for a in arguments) else ()


def changed(value: msgspec.Struct) -> Mapping[str, Any]:
    """The fields of `value` that differ from their defaults, by name."""
    return {
        field.name: getattr(value, field.name)
        for field in fields_of(type(value))
        if getattr(value, field.name) != field.default
    }
