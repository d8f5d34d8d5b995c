"""The kernels stand alone: what importing them loads, and which names they export."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detcheck import kernels

NOT_NEEDED = ("detcheck.experiment", "typer", "pandas", "matplotlib")


def loaded_by(code: str) -> set[str]:
    """Names of the modules that are loaded after a fresh Python ran `code`."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = loaded_by("import detcheck.kernels")
    assert not loaded & {*NOT_NEEDED, "torch", "transformers"}


@pytest.mark.sweep
def test_its_modules_need_no_other_room() -> None:
    loaded = loaded_by("import detcheck.kernels.mode, detcheck.kernels.coverage")
    rooms = {name.split(".")[1] for name in loaded if name.startswith("detcheck.")}
    assert rooms == {"kernels", "errors"}
    assert "torch" in loaded
    assert not loaded & {*NOT_NEEDED}


def test_the_check_sees_what_is_loaded() -> None:
    assert "detcheck.experiment" in loaded_by("import detcheck.kernels, detcheck.experiment")


@pytest.mark.parametrize("name", kernels.__all__)
def test_every_exported_name_exists(name: str) -> None:
    assert getattr(kernels, name).__module__.startswith("detcheck.kernels.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'magic'"):
        kernels.magic  # noqa: B018
