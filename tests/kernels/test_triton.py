"""The Triton kernels without a GPU: interpreted, and compiled ahead of time.

Both need a process of their own: whether kernels are interpreted is settled at Triton's first
import, and it cannot be both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "triton"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))
ARCHITECTURES = ("80", "90")
SLACK_BYTES = 16


def run(interpret: bool, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU, collected as usual")
@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    done = run(True, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / file)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@cache
def compiled(architecture: str) -> tuple[dict, ...]:
    """What the compiler made of every launch, for one architecture."""
    done = run(False, FOLDER / "compiling.py", architecture)
    assert done.returncode == 0, done.stderr[-4000:]
    return tuple(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills(architecture: str) -> None:
    """Up to SLACK_BYTES: ptxas parks two constants of the float32 loops there, outside of them."""
    spilling = [each for each in compiled(architecture) if each["stack_bytes"] > SLACK_BYTES]
    assert spilling == []
    matrix = [each for each in compiled(architecture) if each["mma"] or each["wgmma"]]
    assert [each for each in matrix if each["stack_bytes"]] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_does_not_run_on_the_matrix_unit_as_tf32(architecture: str) -> None:
    found = [each for each in compiled(architecture) if "float32" in each["name"]]
    assert any(each["fma"] for each in found)
    assert [each for each in found if each["mma"] or each["wgmma"]] == []


def test_hopper_keeps_to_its_own_matrix_instruction() -> None:
    """One instruction for every M, so that one class holds them all."""
    found = [each for each in compiled("90") if "float16" in each["name"]]
    products = [each for each in found if "merge" not in each["name"]]
    assert len(products) > 10
    assert [each for each in products if not each["wgmma"] or each["mma"]] == []


def test_ampere_keeps_to_its_own_matrix_instruction() -> None:
    found = [each for each in compiled("80") if "float16" in each["name"]]
    products = [each for each in found if "merge" not in each["name"]]
    assert [each for each in products if not each["mma"] or each["wgmma"]] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fusion_is_never_left_to_the_compiler(architecture: str) -> None:
    assert {each["fp_fusion"] for each in compiled(architecture)} == {False}


@pytest.mark.parametrize(("architecture", "limit_kib"), [("80", 99), ("90", 227)])
def test_shared_memory_fits(architecture: str, limit_kib: int) -> None:
    """99 KiB is what the smallest cards of the generation (8.6, 8.9) have."""
    assert max(each["shared_bytes"] for each in compiled(architecture)) <= limit_kib << 10


def test_no_load_compiles_a_kernel_anew() -> None:
    """Neither one row, nor a multiple of 16, nor the keys in the cache make another binary."""
    done = run(False, FOLDER / "compiling.py", "loads")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == {"product_kernel": 1, "attention_kernel": 1}
