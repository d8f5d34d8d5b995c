"""Settings from a file: `detcheck.toml`, or `[tool.detcheck]` of a `pyproject.toml`.

The file is looked for in the current folder, then in each folder above it, up to the root of the
repository. Its sections, such as `[gate]`, hold fields of a Struct; nothing else is accepted, so
that no setting is ignored because of a typing error.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from detcheck.errors import UsageError
from detcheck.options import plain_error

FILE = "detcheck.toml"
PYPROJECT = "pyproject.toml"
TABLE = ("tool", "detcheck")
"""Where the sections are in a pyproject.toml; in a detcheck.toml they are at the top."""
REPOSITORY = ".git"
"""A folder or file of this name marks the root of a repository."""
SectionKind = type[Any] | tuple[type[Any], ...]
"""The Struct that declares the keys of a section; or several, if it may hold any one of them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings that a file gives."""

    path: Path | None
    """The file; None if there is none."""
    values: Mapping[str, Mapping[str, Any]]
    """By section, then by field: only what the file gives, each value of its field's type."""

    def section(self, name: str) -> Mapping[str, Any]:
        """The fields that section `name` gives; empty if the file has no such section."""
        return self.values.get(name, {})

    def build(self, name: str, kind: type[T]) -> T:
        """A `kind` made of section `name`.

        Raises UsageError, which names the file, if the values make no sense together.
        """
        try:
            return kind(**self.section(name))
        except UsageError as error:
            raise UsageError(f"{_shown(self.path)}: {error}") from error


def load_config(
    start: Path, sections: Mapping[str, SectionKind], holding: Collection[str] = ()
) -> Config:
    """The nearest settings file at or above the folder `start`; an empty Config if there is none.

    If `holding` names sections, it is the nearest file that has one of them, and the files below it
    are checked only. The search ends at the root of the repository, which is the folder with
    `.git`. `sections` maps each known section to the Struct that declares its keys. Raises
    UsageError as `read_config`, and if a folder has two files with settings.
    """
    for folder in _folders(start):
        found = [file for name in (FILE, PYPROJECT) if (file := folder / name).exists()]
        held = [file for file in found if _document(file) is not None]
        if len(held) > 1:
            raise UsageError(
                f"{_shown(held[0])} and {PYPROJECT} beside it both hold settings: keep one of them."
            )
        found_here = read_config(held[0], sections) if held else None
        if found_here is not None and (not holding or found_here.values.keys() & set(holding)):
            return found_here
    return Config(None, {})


def read_config(path: Path, sections: Mapping[str, SectionKind]) -> Config:
    """The settings of one file, which is a pyproject.toml or has the sections at its top.

    Relative paths among the values are relative to the file. Raises UsageError if the file cannot
    be read, has an unknown section or key, or gives a value of the wrong type.
    """
    document = _document(path)
    values = {}
    for section, table in (document or {}).items():
        reader = _Section(path, section, sections)
        values[section] = reader.values(table)
    return Config(path, values)


@dataclass(frozen=True, slots=True)
class _Section:
    """One section of a file."""

    path: Path
    name: str
    sections: Mapping[str, SectionKind]

    def values(self, table: Any) -> dict[str, Any]:
        """The section's values by field name, checked and converted."""
        if self.name not in self.sections:
            raise self._unknown_section(table)
        if not isinstance(table, dict):
            raise self._error(f"{self._title} must be a table.")
        types = field_types(self.sections[self.name])
        values: dict[str, Any] = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in types:
                raise self._unknown_key(key, types)
            if name in values:
                raise self._error(f"{name!r} is given twice in {self._title}: keep one.")
            values[name] = self._convert(key, value, types[name])
        return values

    @property
    def _title(self) -> str:
        return f"[{'.'.join((*_prefix(self.path), self.name))}]"

    def _convert(self, key: str, value: Any, kind: Any) -> Any:
        folder = self.path.parent
        try:
            return msgspec.convert(value, kind, strict=True, dec_hook=_paths_below(folder))
        except msgspec.ValidationError as error:
            problem, _, place = plain_error(str(error)).partition(", at `")
            choices = list(_choices(kind))
            if choices and isinstance(value, str):
                problem = f"unknown value {value!r}{_advice(value, choices)}"
            name = ".".join((*_prefix(self.path), self.name, key)) + place.rstrip("`")
            raise self._error(f"{name}: {problem.rstrip('.')}.") from error

    def _unknown_key(self, key: str, types: Mapping[str, Any]) -> UsageError:
        known = [name.replace("_", "-") for name in types]
        return self._error(f"unknown key {key!r} in {self._title}{_advice(key, known)}")

    def _unknown_section(self, table: Any) -> UsageError:
        """For a key that is no section: it may be a section's key in the wrong place."""
        top = f"[{'.'.join(_prefix(self.path))}]" if _prefix(self.path) else "the file"
        if isinstance(table, dict):
            advice = _advice(self.name, list(self.sections))
            return self._error(f"unknown section {self._title}{advice}")
        owners = [
            section
            for section, kind in self.sections.items()
            if self.name.replace("-", "_") in field_types(kind)
        ]
        if owners:
            section = ".".join((*_prefix(self.path), owners[0]))
            return self._error(f"{self.name!r} belongs in [{section}], not in {top}.")
        known = [name for kind in self.sections.values() for name in field_types(kind)]
        known = [*self.sections, *(name.replace("_", "-") for name in known)]
        return self._error(f"unknown key {self.name!r} in {top}{_advice(self.name, known)}")

    def _error(self, sentence: str) -> UsageError:
        return UsageError(f"{_shown(self.path)}: {sentence}")


def field_types(kind: SectionKind) -> dict[str, Any]:
    """The declared type of each field of a Struct; of several, of the fields of all."""
    found: dict[str, list[Any]] = {}
    for struct in kind if isinstance(kind, tuple) else (kind,):
        hints = get_type_hints(struct, include_extras=True)
        for name in struct.__struct_fields__:
            found.setdefault(name, []).append(hints[name])
    return {name: reduce(or_, types) for name, types in found.items()}


def section_of(path: Path, document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Section `name` of a settings file as TOML reads it; empty if it is missing."""
    for key in (*_prefix(path), name):
        document = document.get(key, {})
    return document


def _advice(word: str, known: list[str]) -> str:
    """The end of a refusal of `word`: the known word most like it, and all known words."""
    close = difflib.get_close_matches(word.replace("_", "-"), known, 1, cutoff=0.5)
    nearest = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{nearest}: known are {', '.join(dict.fromkeys(known))}."


def _folders(start: Path) -> Iterator[Path]:
    """`start` and the folders above it, up to the root of its repository."""
    absolute = start.absolute()
    for folder in (absolute, *absolute.parents):
        yield folder
        if (folder / REPOSITORY).exists():
            return


def _document(path: Path) -> dict[str, Any] | None:
    """The sections of a file; None if it is a pyproject.toml without any."""
    try:
        document: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {_shown(path)}: check the path.") from error
    except OSError as error:
        raise UsageError(f"{_shown(path)} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{_shown(path)} is not valid TOML: {error}.") from error
    if _prefix(path):
        _check_spelling(path, document)
    for depth, key in enumerate(_prefix(path), start=1):
        document = document.get(key)
        if document is None:
            return None
        if not isinstance(document, dict):
            raise UsageError(f"{_shown(path)}: [{'.'.join(TABLE[:depth])}] must be a table.")
    return dict(document)


def _check_spelling(path: Path, document: Mapping[str, Any]) -> None:
    """Raise UsageError if a table of another name is meant for detcheck.

    Such as [tool.detchek], [tools.detcheck], or [detcheck] without `tool`.
    """
    names: list[tuple[str, ...]] = [(name,) for name in document]
    for outer, tables in document.items():
        if _is_like(outer, TABLE[0]) and isinstance(tables, dict):
            names += [(outer, name) for name in tables]
    for name in names:
        if name != TABLE and _is_like(name[-1], TABLE[-1]):
            raise UsageError(
                f"{_shown(path)}: unknown section [{'.'.join(name)}]: did you mean "
                f"[{'.'.join(TABLE)}]?"
            )


def _is_like(word: str, known: str) -> bool:
    """True if `word` may be a misspelling of `known`, or is `known` itself."""
    plain = word.lower().replace("-", "").replace("_", "")
    return bool(difflib.get_close_matches(plain, (known,), 1, cutoff=0.85))


def _prefix(path: Path) -> tuple[str, ...]:
    return TABLE if path.name == PYPROJECT else ()


def _paths_below(folder: Path) -> Any:
    """A hook for msgspec that reads paths, relative ones below `folder`."""

    def read(kind: type, value: Any) -> Any:
        if kind is not Path:
            raise NotImplementedError
        if not isinstance(value, str):
            raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
        return folder / Path(value).expanduser()

    return read


def _choices(kind: Any) -> Iterator[str]:
    """The values that a type allows, if it is made of Literals."""
    for argument in get_args(kind):
        if get_origin(kind) is Literal:
            yield str(argument)
        else:
            yield from _choices(argument)


def _shown(path: Path | None) -> str:
    """A path as short as it can be written from the current folder."""
    return min(str(path), os.path.relpath(path or "."), key=len)
