"""Settings files on the command line: the known sections, and the line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detcheck.config import Config


def settings(file: Path | None = None) -> Config:
    """The settings of `file`; if it is None, of the nearest file at or above the current folder.

    Raises UsageError if the file holds anything unknown.
    """
    from detcheck.config import Kind, load_config, read_config
    from detcheck.experiment import Experiment
    from detcheck.gate.options import GateOptions
    from detcheck.targets import TARGETS

    sections: dict[str, Kind] = {"experiment": Experiment, "target": TARGETS, "gate": GateOptions}
    return load_config(Path.cwd(), sections) if file is None else read_config(file, sections)


def name_settings(found: Config, section: str) -> None:
    """Say on stderr which file a command takes its settings from, if it has `section`."""
    from detcheck.cli.console import print_line, stderr

    if found.section(section):
        print_line(f"settings: [{section}] of {found.path}", console=stderr)
