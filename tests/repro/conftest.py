"""Gives the replays the tiny model of the engines' tests, and runs scripts without detcheck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from engines.conftest import tiny_model
from engines.openai_engine.conftest import measure, serve
from packaging.requirements import Requirement

__all__ = ["alone", "fresh", "measure", "serve", "tiny_model"]

ROOT = Path(__file__).parents[2]

WITHOUT_DETCHECK = (
    "import runpy, sys; sys.modules['detcheck'] = None; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


@dataclass(frozen=True, slots=True)
class Fresh:
    """An environment whose packages are links to those of this one."""

    python: Path
    packages: Path
    """The folder of the links."""

    def add(self, *distributions: str) -> None:
        """Link the packages of `distributions` and of all that they require."""
        for name in required(distributions):
            for top in {file.parts[0] for file in metadata.files(name) or ()} - {".."}:
                link = self.packages / top
                if not link.exists():
                    link.symlink_to(metadata.distribution(name).locate_file(top))

    def run(self, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run its Python in `folder`, without a variable that names another package."""
        variables = {key: each for key, each in os.environ.items() if "PYTHON" not in key}
        return subprocess.run(
            [self.python, *arguments],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def required(distributions: Iterable[str]) -> set[str]:
    """`distributions`, and the installed ones that they require without extras, at any depth."""
    found: set[str] = set()
    left = list(distributions)
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # such as one of another platform
            continue
        found.add(name)
        left += [
            each.name
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    """A new environment that holds PyTorch and its requirements, and nothing else."""
    folder, packages = tmp_path / "environment", tmp_path / "packages"
    packages.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    environment = Fresh(folder / "bin/python", packages)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = environment.run(tmp_path, "-c", where).stdout.strip()
    Path(site, "links.pth").write_text(f"{packages}\n", encoding="utf-8")
    environment.add("torch")
    return environment


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own that cannot import detcheck, in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", WITHOUT_DETCHECK, str(script)],
            cwd=empty,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
