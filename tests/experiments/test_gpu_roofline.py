"""The computed bounds of the GPU kernels, and how many programs their launches have."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import roofline
from gpu_sections import roofline_calls as calls
from gpu_sections.layers import MODELS
from gpu_sections.roofline_cost import H100, H200

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
ROOT = Path(__file__).parents[2]


def test_the_work_of_a_linear_layer_is_counted() -> None:
    cost = calls.linear(4, 14336, 4096)
    assert cost.work.read_bytes == 2 * (14336 * 4096 + 4 * 4096)
    assert cost.work.written_bytes == 2 * 4 * 14336
    assert cost.work.flops == 2 * 4 * 14336 * 4096
    assert cost.programs == 14336 // 64
    assert cost.seconds(H100) == pytest.approx(cost.work.moved_bytes / 3.35e12)
    assert cost.seconds(H200) < cost.seconds(H100)


def test_a_large_product_is_bound_by_the_processors_with_work() -> None:
    cost = calls.linear(4096, 4096, 4096)
    assert cost.seconds(H100) == cost.seconds(H200) >= cost.work.flops / 989e12


def test_attention_reads_each_key_once() -> None:
    model = MODELS["Llama-3-8B"]
    cost = calls.decoding(64, 1024, model)
    assert cost.work.read_bytes == 2 * (64 * 32 * 128 + 2 * 64 * 1024 * 8 * 128)
    assert cost.work.flops == 4 * 32 * 64 * 1024 * 128
    assert [launch.name for launch in calls.decoding(1, 1024, model).launches] == [
        "attention_kernel", "merge_kernel",
    ]  # fmt: skip


@pytest.mark.sweep
def test_residency_follows_from_the_binary() -> None:
    cost = calls.linear(1, 14336, 4096)
    made = cost.compiled
    assert made.registers * 32 * made.warps * cost.resident <= 65536
    assert (made.shared_bytes + 1024) * cost.resident <= 233472
    assert (made.shared_bytes + 1024) * (cost.resident + 1) > 233472


def test_a_step_holds_all_layers() -> None:
    model = MODELS["Llama-3-8B"]
    counts = [count for _, count in roofline.step_costs(model, 1)]
    assert counts == [*([32] * 7), 1, 32, 65]
    moved = sum(cost.work.moved_bytes * count for cost, count in roofline.step_costs(model, 1))
    assert 15.0e9 < moved < 15.3e9  # 7.5 billion weights, without the embedding


@pytest.mark.sweep
def test_the_committed_page_is_what_the_script_writes(tmp_path: Path) -> None:
    """`python experiments/gpu.py --roofline` makes it again; with another Triton it differs."""
    committed = (ROOT / "results" / "gpu" / "roofline.md").read_text()
    assert "Computed, but for the last two columns" in committed
    if roofline.HEAD[2] not in committed:
        pytest.skip("the page was made with another version of Triton")
    shutil.copy(ROOT / "results" / "gpu" / "gpu.json", tmp_path)
    roofline.write(tmp_path)
    assert (tmp_path / "roofline.md").read_text() == committed


def test_what_a_card_took_stands_beside_the_bound_of_the_same_call(tmp_path: Path) -> None:
    """None is below its bound; calls that no card took have no figure."""
    measured = roofline.measured_in(ROOT / "results" / "gpu" / "gpu.json")
    ours, stock = measured[4096, 14336, 16]
    assert roofline.cells_of(measured, (4096, 14336, 16)) == (
        f"{1e3 * ours:.1f}", f"{1e3 * stock:.1f}",
    )  # fmt: skip
    assert roofline.cells_of(measured, (4096, 14336, 17)) == ("–", "–")
    assert ours > 1e3 * calls.linear(16, 4096, 14336).work.moved_bytes / H100.bytes_a_second
    assert ("decode", 64, 1024) in measured
    assert roofline.measured_in(tmp_path / "gpu.json") == {}
