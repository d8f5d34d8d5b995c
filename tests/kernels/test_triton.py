"""The Triton kernels without a GPU: interpreted, and compiled ahead of time.

Both need a process of their own: whether kernels are interpreted is settled at Triton's first
import, and it cannot be both. All of it is a sweep.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

sys.path.insert(0, str(Path(__file__).parent / "triton"))

import compiling

from detcheck.kernels.triton import ahead, attention_form, attention_layout, matmul, reduce
from detcheck.kernels.triton.attention import PLAIN
from detcheck.kernels.triton.attention_shapes import Shape
from detcheck.kernels.triton.configs import Tile

pytestmark = pytest.mark.sweep
FOLDER = Path(__file__).parent / "triton"
SMALL = "test_triton_small.py"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name != SMALL)
ARCHITECTURES = ("80", "90")
FEW = ("90", "few")
"""A small case of each kernel, for Hopper."""
COMPILED = [
    pytest.param(FEW, id="a few for 90"),
    *(pytest.param((name,), id=name) for name in ARCHITECTURES),
]
SLACK_BYTES = 64
"""Of stack, for what is parked there outside of loops."""


def run(interpret: bool, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU, collected as usual")
@pytest.mark.parametrize("file", [SMALL, *FILES])
def test_interpreted(file: str) -> None:
    done = run(True, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / file)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@cache
def compiled(*which: str) -> tuple[dict[str, Any], ...]:
    """What the compiler made of every launch, for one architecture or a few launches."""
    done = run(False, FOLDER / "compiling.py", *which)
    assert done.returncode == 0, done.stderr[-4000:]
    return tuple(json.loads(line) for line in done.stdout.splitlines())


def products(which: tuple[str, ...]) -> list[dict[str, Any]]:
    """The 16-bit products and the attention: what runs on the matrix unit."""
    on_unit = ("product_kernel", "descriptor_kernel", "grouped_kernel", "attention_kernel")
    found = [each for each in compiled(*which) if each["kernel"] in on_unit]
    return [each for each in found if "float16" in each["name"]]


@pytest.mark.parametrize("which", COMPILED)
def test_no_loop_spills(which: tuple[str, ...]) -> None:
    """A few values are parked on the stack before a loop and taken back after it, at no cost."""
    assert [each for each in compiled(*which) if each["loop_spills"]] == []
    assert [each for each in compiled(*which) if each["stack_bytes"] > SLACK_BYTES] == []


def test_the_same_check_finds_a_loop_that_spills() -> None:
    """A tile of 128 by 256 for four warps: more sums than a thread has registers."""
    left = torch.empty(1, 8192, 4096, dtype=torch.bfloat16, device="meta")
    right = torch.empty(1, 4096, 4096, dtype=torch.bfloat16, device="meta").mT
    tile = Tile(128, 256, 64, 4, 3)
    launch = ahead.launches_of(lambda: matmul.product(left, right, None, tile))[0]
    assert ahead.compile_launch(launch, 90).loop_spills > 0


@pytest.mark.parametrize("which", COMPILED)
def test_float32_does_not_run_on_the_matrix_unit_as_tf32(which: tuple[str, ...]) -> None:
    found = [each for each in compiled(*which) if "float32" in each["name"]]
    assert any(each["fma"] for each in found) or which == FEW
    assert [each for each in found if each["mma"] or each["wgmma"]] == []


@pytest.mark.parametrize("which", [COMPILED[0], COMPILED[2]])
def test_hopper_keeps_to_its_own_matrix_instruction(which: tuple[str, ...]) -> None:
    """One instruction for every M, so that one class holds them all."""
    assert len(products(which)) >= 5
    assert [each for each in products(which) if not each["wgmma"] or each["mma"]] == []


def test_ampere_keeps_to_its_own_matrix_instruction() -> None:
    assert len(products(("80",))) > 10
    assert [each for each in products(("80",)) if not each["mma"] or each["wgmma"]] == []


@pytest.mark.parametrize("which", [COMPILED[0], COMPILED[2]])
def test_products_overlap_with_loads(which: tuple[str, ...]) -> None:
    """One product stays in flight while the next block is loaded."""
    found = [each for each in products(which) if each["kernel"] != "attention_kernel"]
    assert [each["name"] for each in found if each["serial_wgmma"]] == []


@pytest.mark.parametrize("which", [COMPILED[0], COMPILED[2]])
def test_no_warp_repeats_the_product_of_another(which: tuple[str, ...]) -> None:
    """Heads of 256 excepted: the registers of four warps do not hold two of their results."""
    found = [each for each in products(which) if "dim=256" not in each["name"]]
    assert [(each["name"], each["repeated"]) for each in found if each["repeated"]] == []


def test_the_same_check_finds_warps_that_repeat_a_product() -> None:
    """Eight warps of 16 rows each over a tile of 64 rows: the scores are computed twice."""
    query = torch.empty(1, 32, 64, 128, dtype=torch.bfloat16, device="meta")
    key = torch.empty(1, 8, 64, 128, dtype=torch.bfloat16, device="meta")
    layout = attention_layout.Layout(1)
    form = attention_form.AttentionForm(query, key, key, layout, PLAIN, Shape(64, 64, 8, 2))
    launch = ahead.launches_of(lambda: form(query, key, key, layout, False))[-1]
    made = ahead.compile_launch(launch, 90)
    assert ahead.repeated_products(made.ttgir) == ["64x64 by 8x1 warps"]


@pytest.mark.parametrize("which", COMPILED)
def test_halves_of_heads_are_negated_as_pytorch_does_it(which: tuple[str, ...]) -> None:
    """Triton 3.6 compiles `-x` to `0 - x`, which makes another zero of a zero."""
    found = [each for each in compiled(*which) if each["kernel"] == "rotary_kernel"]
    assert found
    assert [each["name"] for each in found if each["zero_minus"]] == []


def test_the_same_count_finds_a_zero_that_is_subtracted_from() -> None:
    """As Triton 3.6 wrote it."""
    ptx = "mov.b32 %r109, 0f00000000;\nsub.rn.f32 %r110, %r109, %r107;\nsub.rn.f32 %r3, %r1, %r2;"
    assert ahead.subtractions_from_zero(ptx) == 1


@pytest.mark.parametrize("which", COMPILED)
def test_fusion_is_never_left_to_the_compiler(which: tuple[str, ...]) -> None:
    assert {each["fp_fusion"] for each in compiled(*which)} == {False}


@pytest.mark.parametrize("which", COMPILED)
def test_shared_memory_fits(which: tuple[str, ...]) -> None:
    """99 KiB is what the smallest cards of Ampere's generation (8.6, 8.9) have."""
    limit_kib = 99 if which == ("80",) else 227
    assert max(each["shared_bytes"] for each in compiled(*which)) <= limit_kib << 10


@pytest.mark.parametrize("which", COMPILED)
def test_the_fused_norm_adds_in_the_order_of_the_mean(which: tuple[str, ...]) -> None:
    """The same threads hold the same entries; they add them by the same instructions."""
    added = {each["name"]: each["added"] for each in compiled(*which)}
    norms = [name for name in added if name.startswith("fused norm")]
    assert len(norms) >= 2
    for name in norms:
        assert len(added[name]) == 1
        assert added[name] == added[name.replace(" of sum", "").replace("norm", "mean")], name


def test_the_same_check_finds_threads_that_hold_other_entries() -> None:
    """Of 16-bit entries a thread holds twice as many side by side."""
    x = torch.empty(8, 4096, dtype=torch.bfloat16, device="meta")
    launches = ahead.launches_of(lambda: [reduce.mean_dims(y, [-1]) for y in (x, x.float())])
    texts = [ahead.compile_launch(each, 90).ttgir for each in launches]
    assert compiling.layouts_of_sums(texts[0]) != compiling.layouts_of_sums(texts[1])


def test_no_load_compiles_a_kernel_anew() -> None:
    """Neither one row, nor a multiple of 16, nor the keys in the cache make another binary."""
    done = run(False, FOLDER / "compiling.py", "loads")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == {
        "product_kernel": 1, "attention_kernel": 1, "schedule_kernel": 1,
    }  # fmt: skip
