"""Who is asked, as data. To add an engine: a folder under `engines/`, and an entry in `TARGETS`.

Nothing here imports torch: a target is read, checked and shown without loading a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from detcheck.errors import UsageError
from detcheck.options import choices_of, hints_of
from detcheck.targets.base import DEVICES, DTYPES, Target, Traits
from detcheck.targets.in_process import InProcess
from detcheck.targets.scripted import Scripted
from detcheck.targets.served import Served
from detcheck.targets.vllm import Vllm

TARGETS: tuple[type[Target], ...] = (InProcess, Served, Vllm, Scripted)
"""Every kind of target. The first is the default."""

__all__ = [
    "DEVICES",
    "DTYPES",
    "TARGETS",
    "InProcess",
    "Scripted",
    "Served",
    "Target",
    "Traits",
    "Vllm",
    "engines",
    "from_dict",
]


@cache
def engines() -> dict[str, type[Target]]:
    """Every engine's name, and the kind of target that it belongs to."""
    return {name: kind for kind in TARGETS for name in choices_of(hints_of(kind)["engine"])}


def from_dict(options: Mapping[str, Any]) -> Target:
    """The target that `options` describe: `engine`, and any of that target's fields.

    Without `engine`, endpoints mean a server; otherwise it is the default target. Raises UsageError
    if the engine is unknown, or an option belongs to another target.
    """
    known = engines()
    name = options.get("engine") or ("openai" if options.get("endpoints") else None)
    if name is not None and name not in known:
        raise UsageError(f"Unknown engine {name!r}: choose one of {', '.join(known)}.")
    kind = TARGETS[0] if name is None else known[name]
    given = {key: value for key, value in options.items() if key != "engine"}
    if name is not None:
        given["engine"] = name
    _check_known(given, name, kind)
    return kind(**given)


def _check_known(given: Iterable[str], engine: str | None, kind: type[Target]) -> None:
    for name in given:
        if name in kind.__struct_fields__:
            continue
        owners = [engine for engine, owner in engines().items() if name in owner.__struct_fields__]
        if name == "endpoints" and engine is None:
            raise UsageError("`endpoints` names no server: give a base URL, or leave it out.")
        if name == "endpoints":
            raise UsageError(
                f"Two targets are named: `endpoints`, and the engine {engine}, which asks no "
                "server. Keep one of the two."
            )
        if owners:
            raise UsageError(f"`{name}` is for the engine {' or '.join(owners)}.")
        raise UsageError(f"Unknown option {name!r} of a target.")
