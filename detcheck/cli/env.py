"""`detcheck env`: the environment that a run would record."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from detcheck.cli.shared import AsJson


class Device(StrEnum):
    """Devices that a run can be asked for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def env_command(
    device: Annotated[Device, typer.Option(help="Device that a run would use.")] = Device.AUTO,
    as_json: AsJson = False,
) -> None:
    """Show the machine and the settings that change numerics.

    Every run keeps the same. It holds no host or user name, no path and no secret.
    """
    from detcheck.cli.console import print_json
    from detcheck.environment import collect

    environment = collect(device.value)
    print_json(environment) if as_json else _print(environment)


def _print(environment: Mapping[str, Any]) -> None:
    from rich.table import Table

    from detcheck.cli.console import stdout, untrusted
    from detcheck.environment import settings

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in settings(environment):
        table.add_row(untrusted(name), untrusted(_shown(value)))
    stdout.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return " ".join(map(str, value)) or "–" if isinstance(value, list) else str(value)
