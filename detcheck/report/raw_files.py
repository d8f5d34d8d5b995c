"""The files that lie behind a report: those of the run, and those written beside the report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from detcheck.rundir import COMPLETIONS_FILE, RUN_FILE, VARIANTS_FILE

DESCRIPTIONS = {
    RUN_FILE: "experiment, environment, conditions and proofs of the run",
    COMPLETIONS_FILE: "one line for each completion",
    VARIANTS_FILE: "one line for each distinct answer, with its tokens",
    "prompts_asked.jsonl": "the prompts, for the command that runs it again",
    "conditions.csv": "one row for each prompt, kernels setting and batch size",
    "variants.csv": "one row for each variant",
    "branchings.csv": "one row for each branching of the prefix trees",
    "answers.csv": "one row for each item, kernels setting and parsed answer",
    "report.md": "this report as Markdown",
    "ops.json": "the results of detcheck ops",
    "trace.json": "the results of detcheck trace",
}
"""The files that are linked, and the content of each."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file that a report links to."""

    name: str
    href: str
    """Its address relative to the report."""
    description: str


def raw_files(run: Path, folder: Path, written: Iterable[str]) -> tuple[RawFile, ...]:
    """The files of the run directory `run`, and those `written` into the report's `folder`."""
    return tuple(_files(run, folder, set(written)))


def _files(run: Path, folder: Path, written: set[str]) -> Iterator[RawFile]:
    for name, description in DESCRIPTIONS.items():
        if name in written:
            yield RawFile(name, name, description)
        elif (run / name).is_file():
            yield RawFile(name, _address(run / name, folder), description)


def _address(path: Path, folder: Path) -> str:
    """The address of a file relative to a folder, as a link."""
    relative = Path(os.path.relpath(path.resolve(), folder.resolve()))
    return quote(os.fsencode(relative.as_posix()))  # a colon too: no path becomes a scheme
