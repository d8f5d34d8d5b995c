"""What a launch costs the host, and that repeated launches pass on what Triton would.

Triton compiles for Hopper and launches on a driver that notes what it is given. What is counted
are calls of functions, which repeat exactly, not time; `experiments/gpu.py --launches` times them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from sweeps import few

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from gpu_sections.launches import as_on_a_gpu, fused_calls
from gpu_sections.stub_driver import stub_driver

from detcheck.kernels.fused import gpu, gpu_layer, proofs
from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import (
    attention,
    attention_layout,
    launch,
    linear,
    norm,
    reduce,
    rows,
)
from detcheck.kernels.triton.attention_layout import Layout

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the driver stands in for a GPU's"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]


SCORES = Scores(0.1)


@dataclass(frozen=True)
class Given:
    """What the driver was given for one launch."""

    grid: tuple[int, ...]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, *given: Any) -> Given:
        """Tensors as their addresses, which is what the driver makes of them."""
        arguments = (x.data_ptr() if isinstance(x, torch.Tensor) else x for x in given[-1])
        return cls(given[:3], tuple(arguments))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Given]]:
    """The launches that reached the driver; no kernel is kept from other tests."""
    found: list[Given] = []
    for name in ("NORMS", "ACTIVATIONS", "ROTATIONS"):
        monkeypatch.setattr(gpu, name, proofs.ProvenLaunches())
    monkeypatch.setattr(gpu_layer, "SUMS", proofs.ProvenLaunches())
    monkeypatch.setattr(proofs, "ENTRIES", 1 << 12)
    for table in (attention._kept, attention_layout._kept, linear._kept, rows._kept):
        table.clear()
    with (
        stub_driver(lambda *given: found.append(Given.of(*given))),
        torch.inference_mode(),
        as_on_a_gpu(),
    ):
        yield found


def half(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16()


def packed_operands(keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Layout]:
    """Eight requests of one query; memory as transformers has it in continuous batching."""
    query = half(1, 8, 32, 128).transpose(1, 2)
    key, value = (half(1, 8 * keys, 8, 128).transpose(1, 2) for _ in range(2))
    bounds = torch.arange(9, dtype=torch.int32)
    layout = Layout(8, bounds, bounds * keys, max_k=keys)
    attention.attention(query, key, value, layout, SCORES)  # the first layer of a step
    return query, key, value, layout


def linear_call() -> Callable[[], object]:
    x, weight = half(8, 1, 4096), half(14336, 4096)
    return lambda: linear.linear(x, weight)


def biased_linear_call() -> Callable[[], object]:
    x, weight, bias = half(8, 1, 4096), half(1024, 4096), half(1024)
    return lambda: linear.linear(x, weight, bias)


def mean_call() -> Callable[[], object]:
    x = torch.randn(8, 1, 4096)
    return lambda: reduce.mean_dims(x, [-1], True)


def layer_norm_call() -> Callable[[], object]:
    x, weight, bias = half(8, 1, 768), half(768), half(768)
    return lambda: norm.layer_norm(x, [768], weight, bias, 1e-5)


def attention_call() -> Callable[[], object]:
    query, key, value, layout = packed_operands(200)
    return lambda: attention.attention(query, key, value, layout, SCORES)


def split_attention_call() -> Callable[[], object]:
    query, key, value, layout = packed_operands(600)
    return lambda: attention.attention(query, key, value, layout, SCORES, parallel=True)


def fused_call(name: str) -> Callable[[], Callable[[], object]]:
    return lambda: fused_calls()[name][0]


FUSED = ("norm", "norm of a sum", "rotary positions", "gated activation")
CALLS: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
    "linear": (linear_call, 1),
    "linear with a bias": (biased_linear_call, 1),
    "mean": (mean_call, 1),
    "layer norm": (layer_norm_call, 1),
    "attention": (attention_call, 1),
    "attention, splits side by side": (split_attention_call, 2),
    **{name: (fused_call(name), 1) for name in FUSED},
}
"""What makes a call, and how many launches the call makes."""
STAND_INS = ("test_launch.py", "stub_driver.py")
MOST_PYTHON = 12
"""Calls of Python functions a launch; on the machine that this was written on 3 µs hold 12 of them
and the calls below. Triton's own launch makes more than 100."""
MOST_OTHERS = 24
"""Calls of functions in C a launch."""


def calls_of(function: Callable[[], object]) -> tuple[int, int]:
    """Calls of Python functions, and of functions in C, that a call makes; not the driver's."""
    counts = {"call": 0, "c_call": 0}

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event in counts and Path(frame.f_code.co_filename).name not in STAND_INS:
            counts[event] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counts["call"], counts["c_call"]


@pytest.mark.sweep
@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_launch_costs_the_host_little(name: str, launches: list[Given]) -> None:
    make, expected = CALLS[name]
    call = make()
    call()
    launches.clear()
    python, others = calls_of(call)
    assert len(launches) == expected
    assert python <= MOST_PYTHON * expected
    assert others <= MOST_OTHERS * expected


def test_the_same_count_catches_a_launch_by_triton(
    launches: list[Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = linear_call()
    monkeypatch.setattr(launch, "_straight_to_the_driver", lambda compiled: None)
    call()
    python, _ = calls_of(call)
    assert python > 2 * MOST_PYTHON


@few("name", CALLS)
def test_a_repeated_launch_passes_on_what_triton_would(
    name: str, launches: list[Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grid, numbers and constants; addresses of the inputs, which are the same."""
    call = CALLS[name][0]()
    call()
    launches.clear()
    call()
    direct = list(launches)
    launches.clear()
    monkeypatch.setattr(launch._launch_hooks(), "calls", [lambda *given: None])
    call()
    assert len(direct) == len(launches) > 0
    for one, other in zip(direct, launches, strict=True):
        assert one.grid == other.grid
        assert len(one.arguments) == len(other.arguments)
        assert [differ for differ in zip(one.arguments, other.arguments, strict=True)
                if differ[0] != differ[1] and not are_addresses(*differ)] == []  # fmt: skip


def are_addresses(*numbers: Any) -> bool:
    """True for numbers that only addresses of results are as large as."""
    return all(isinstance(number, int) and number > 1 << 32 for number in numbers)


def test_another_layer_of_the_same_shape_is_launched_with_its_own_weight(
    launches: list[Given],
) -> None:
    x, first, second = half(8, 1, 512), half(256, 512), half(256, 512)
    linear.linear(x, first)
    launches.clear()
    linear.linear(x, first)
    linear.linear(x, second)
    weights = [given.arguments[1] for given in launches]
    assert weights == [first.data_ptr(), second.data_ptr()]


def test_an_input_that_is_not_aligned_goes_through_triton(launches: list[Given]) -> None:
    """The kept kernel was compiled for aligned addresses; Triton compiles another one."""
    weight, memory = half(256, 512), half(8 * 512 + 1)
    linear.linear(memory[:-1].view(8, 512), weight)
    python, _ = calls_of(lambda: linear.linear(memory[1:].view(8, 512), weight))
    assert python > 2 * MOST_PYTHON
    assert launches[-1].arguments[0] == memory.data_ptr() + 2


def test_kept_launches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST_KEPT", 3)
    table: dict[int, int] = {}
    for kind in range(10):
        launch.keep(table, kind, kind)
        assert table[kind] == kind
        assert len(table) <= 3
