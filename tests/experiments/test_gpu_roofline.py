"""The computed bounds of the GPU kernels, and how many programs their launches have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections import roofline
from gpu_sections import roofline_calls as calls
from gpu_sections.layers import MODELS, linear_shapes
from gpu_sections.roofline_cost import H100, H200, PROCESSORS

from detcheck.kernels.triton import configs

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
ROOT = Path(__file__).parents[2]
DECODING = (1, 16)
ENOUGH = 0.9
"""Share of the processors that should have a program of their own."""


def lacking(rows: int) -> list[str]:
    """Layers whose launch leaves processors without work although their sums could be cut more."""
    found = []
    for model, layers, columns, inner in linear_shapes():
        programs = calls.linear(rows, columns, inner).programs
        if (
            programs < ENOUGH * PROCESSORS
            and longest(columns, inner) >= 2 * configs.SHORTEST_SEGMENT
        ):
            found.append(f"{model} {layers}: {programs} programs")
    return found


def longest(columns: int, inner: int) -> int:
    """K of one program: a segment, or the whole sum."""
    return configs.segment_k(columns, inner) or inner


@pytest.mark.parametrize("rows", DECODING)
def test_decoding_has_a_program_for_each_processor(rows: int) -> None:
    """For every layer of Llama-3-8B, Qwen3-8B, Qwen3-30B-A3B and SmolLM2, unless it is too small
    to be cut: its segments then are as short as they may be."""
    assert {model for model, *_ in linear_shapes()} == set(MODELS)
    assert lacking(rows) == []


def test_the_same_count_finds_layers_whose_sums_are_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configs, "WIDEST_CUT", 0)
    assert "Llama-3-8B q, o: 64 programs" in lacking(1)
    assert any("down" in each for each in lacking(1))


def test_the_rows_do_not_change_where_sums_are_cut() -> None:
    """The segments of a layer are those of its shape, for 1 row and for 8192."""
    for _, _, columns, inner in linear_shapes():
        launches = [calls.linear(rows, columns, inner).launches[0] for rows in (1, 64, 8192)]
        cuts = {launch.arguments["SEGMENT_K"] for launch in launches}
        assert cuts == {configs.segment_k(columns, inner)}


def test_the_work_of_a_linear_layer_is_counted() -> None:
    cost = calls.linear(4, 14336, 4096)
    assert cost.work.read_bytes == 2 * (14336 * 4096 + 4 * 4096)
    assert cost.work.written_bytes == 2 * 4 * 14336
    assert cost.work.flops == 2 * 4 * 14336 * 4096
    assert cost.programs == 14336 // 64
    assert cost.seconds(H100) == pytest.approx(cost.work.moved_bytes / 3.35e12)
    assert cost.seconds(H200) < cost.seconds(H100)


def test_partial_sums_are_written_and_read() -> None:
    cost = calls.linear(4, 4096, 4096)
    assert cost.launches[0].grid == (64, 2, 1)
    assert cost.work.written_bytes == 2 * 4 * 4096 + 2 * 4 * 4 * 4096


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
    assert "Computed, not measured." in committed
    if roofline.HEAD[2] not in committed:
        pytest.skip("the page was made with another version of Triton")
    roofline.write(tmp_path)
    assert (tmp_path / "roofline.md").read_text() == committed
