"""An experiment file: `[experiment]`, `[target]` and `[gate]` of a TOML file, read and written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detcheck.config import Config, SectionKind, load_config, read_config
from detcheck.experiment import Experiment
from detcheck.prompts import PromptItem, PromptSet, read_prompts
from detcheck.targets import TARGETS, Target


class PromptsFile(msgspec.Struct):
    """The key of `[experiment]` that names a file of prompts."""

    prompts_file: Path | None = None


SECTIONS: dict[str, SectionKind] = {"experiment": (Experiment, PromptsFile), "target": TARGETS}
"""The sections of an experiment file beside [gate], and the structures that declare their keys."""


ASKED = ("experiment", "target")
"""The sections with the question and the target."""


def find_settings(given: Path | None = None, *, holding: Collection[str] = ()) -> Config:
    """The experiment file `given`, or the nearest one at or above the current folder.

    If `holding` names sections, it is the nearest file that has one of them. Raises UsageError if
    the file holds anything unknown.
    """
    from detcheck.gate.options import GateOptions

    sections = {**SECTIONS, "gate": GateOptions}
    if given is not None:
        return read_config(given, sections)
    return load_config(Path.cwd(), sections, holding)


def name_settings(found: Config, *sections: str) -> None:
    """Say on stderr which file a command takes its settings from, if it has one of `sections`."""
    from detcheck.cli.console import print_line, stderr

    taken = " and ".join(f"[{section}]" for section in sections if found.section(section))
    if taken:
        print_line(f"settings: {taken} of {found.path}", "dim", console=stderr)


def fields_of_file(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The experiment's and the target's fields that a file gives, prompts read from their own file.

    Raises UsageError as `read_prompts` does.
    """
    asked = dict(config.section("experiment"))
    target = dict(config.section("target"))
    file = asked.pop("prompts_file", None)
    if file is None:
        return asked, target
    fields, options = fields_of_prompts(asked.get("prompts", ()), read_prompts(file))
    return asked | fields, options | target


def fields_of_prompts(
    texts: Sequence[str], read: PromptSet | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The experiment's and the target's fields for the prompts `texts` and those of a file.

    Text that a model was sent has its chat template applied already, so it gets none.
    """
    if read is None:
        return {"prompts": tuple(texts), "items": ()}, {}
    items = (*(PromptItem() for _ in texts), *read.items) if read.items else ()
    asked = {"prompts": (*texts, *read.prompts), "items": items}
    return asked, {"chat_template": False} if read.as_sent else {}


def to_toml(experiment: Experiment, target: Target, gate: Mapping[str, Any]) -> str:
    """An experiment file that asks `experiment` of `target`, with every field spelt out."""
    import tomli_w

    sections = {
        "experiment": _present(experiment.to_dict()),
        "target": _present(target.to_dict()),
        "gate": _present(msgspec.to_builtins(dict(gate), enc_hook=str)),
    }
    head = (
        "# Measure it with `detcheck run --config FILE`, judge the run with `detcheck gate RUN`.\n"
    )
    filled = {name: fields for name, fields in sections.items() if fields}
    return head + tomli_w.dumps(filled, multiline_strings=False)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value: TOML has none for nothing."""
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    """A value as TOML takes it: lists for tuples, and tables and lists without nothing in them."""
    if isinstance(value, Mapping):
        return _present(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value if each is not None]
    return value
