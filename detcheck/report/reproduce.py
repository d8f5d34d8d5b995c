"""The command that runs an experiment again, as one can paste it into a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import msgspec

from detcheck.experiment import Experiment
from detcheck.kernels.settings import AS_SERVED
from detcheck.options import Field, fields_of
from detcheck.prompts import PromptItem
from detcheck.targets import Target

PROMPTS_FILE = "prompts_asked.jsonl"
"""The file of the prompts beside a report, if they do not fit into the command."""
MOST_PROMPTS = 20
LONGEST_PROMPTS = 4000
"""Prompts, and characters of all prompts, that a command holds."""


def prompts_file(experiment: Experiment) -> str | None:
    """The text of `PROMPTS_FILE`, one JSON object a line; None if the command holds the prompts."""
    if not _needs_file(experiment):
        return None
    items = experiment.items or (PromptItem(),) * len(experiment.prompts)
    rows = map(_row, experiment.prompts, items)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _needs_file(experiment: Experiment) -> bool:
    prompts = experiment.prompts
    long = len(prompts) > MOST_PROMPTS or sum(map(len, prompts)) > LONGEST_PROMPTS
    return bool(experiment.items) or long


def _row(prompt: str, item: PromptItem) -> dict[str, Any]:
    """A line of a prompts file: the prompt or its chat, with its name and right answer."""
    known: dict[str, Any] = msgspec.to_builtins(item)
    fields = known.pop("fields", {})
    asked = {} if item.messages else {"prompt": prompt}
    return {**asked, **known, **fields}


def command(experiment: Experiment, target: Target) -> str:
    """`detcheck run …` with every option spelt out, so that later defaults cannot change it."""
    return shlex.join(["detcheck", "run", *_arguments(experiment, target)])


def _arguments(experiment: Experiment, target: Target) -> Iterator[str]:
    model = getattr(target, "model", None)
    if model is not None:
        yield model
    by_file = _needs_file(experiment)
    if by_file:
        yield from ("--prompts", PROMPTS_FILE)
    for prompt in () if by_file else experiment.prompts:
        # Joined by "=", or a prompt that begins with a dash would be read as an option.
        yield from (f"--prompt={prompt}",) if prompt.startswith("-") else ("-p", prompt)
    yield from ("--engine", target.engine)
    for field in fields_of(Experiment):
        if experiment.kernels != (AS_SERVED,) or field.name != "kernels":
            yield from _option(field, getattr(experiment, field.name))
    for field in fields_of(type(target)):
        if field.name not in ("engine", "model"):
            yield from _option(field, getattr(target, field.name))


def _option(field: Field, value: Any) -> Iterator[str]:
    """The flag of a field with its value; none if the value is the absence of one."""
    long = next((flag for flag in field.option.flags if flag.startswith("--")), None)
    flag = next(iter(field.option.flags), None) or "--" + field.name.replace("_", "-")
    if field.type is bool:
        if value != field.default:
            yield long or flag
    elif field.option.repeatable:
        for each in value:
            yield from (flag, each)
    elif value is not None:
        yield from (flag, _text(field, value))


def _text(field: Field, value: Any) -> str:
    if field.name == "seeds" and len(value) == 1:
        return f"{value[0]},"  # a comma, since one number alone would be a number of seeds
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)
