"""The host's time for a launch, measured with a driver that launches nothing.

Triton compiles for Hopper, and the driver at the end does nothing. So what is measured is all that
Python does for a call: finding the kept launch, allocating results, passing arguments on.
"""

from __future__ import annotations

import timeit
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import SimpleNamespace
from unittest import mock

import torch
from torch.nn import functional as F

from detcheck.kernels.fused import gpu, gpu_layer, templates
from detcheck.kernels.fused.calls import LINEAR, Calls
from detcheck.kernels.fused.norm import FusedNorm
from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import attention, launch, linear, norm, reduce
from detcheck.kernels.triton.attention_layout import Layout
from gpu_sections.layers import MODELS
from gpu_sections.stub_driver import stub_driver

CALLS, ROUNDS = 50, 400
"""Calls of a round, and rounds; the fastest round counts, which other processes disturb least."""
LOAD = 8
"""Requests of a decoding step."""


def table() -> list[str]:
    """Microseconds a call in Markdown, and of a decoding step of Llama-3-8B."""
    lines = ["| call | launches | µs | of it allocations | by Triton µs |", "|---" * 5 + "|"]
    by_name: dict[str, float] = {}
    with stub_driver("".format), torch.inference_mode(), as_on_a_gpu():
        for name, (call, launches, shapes) in calls().items():
            total, allocating = microseconds(call), microseconds(allocations(shapes))
            by_name[name] = total - allocating
            through = through_triton(call)
            lines.append(
                f"| {name} | {launches} | {total:.1f} | {allocating:.1f} | {through:.1f} |"
            )
    model = MODELS["Llama-3-8B"]
    counts = {
        "linear": (len(model.linear) - 1) * model.layers + 1,
        "norm": model.layers + 1,
        "norm of a sum": model.layers,
        "rotary positions": model.layers,
        "gated activation": model.layers,
        "attention": model.layers,
    }
    step = sum(by_name[name] * count for name, count in counts.items())
    number = sum(counts.values())
    lines += ["", f"A step of Llama-3-8B: {number} launches, {step / number:.1f} µs of Python each "
              f"without allocations, {step / 1000:.2f} ms in all."]  # fmt: skip
    return lines


Call = tuple[Callable[[], object], int, list[tuple[int, ...]]]
"""The call, its launches, and the shapes that it allocates."""


def calls() -> dict[str, Call]:
    """Calls of a decoding step."""
    x, weight = half(LOAD, 1, 4096), half(14336, 4096)
    wide = torch.randn(LOAD, 1, 4096)
    query = half(1, LOAD, 32, 128).transpose(1, 2)
    key = half(1, LOAD * 600, 8, 128).transpose(1, 2)
    bounds = torch.arange(LOAD + 1, dtype=torch.int32)
    short, long = (Layout(LOAD, bounds, bounds * keys, max_k=keys) for keys in (200, 600))
    out = (1, LOAD, 32, 128)
    scores = Scores(0.1)
    return {
        "linear": (lambda: linear.linear(x, weight), 1, [(LOAD, 1, 14336)]),
        "mean": (lambda: reduce.mean_dims(wide, [-1], True), 1, [(LOAD, 1, 1)]),
        "layer norm": (
            lambda: norm.layer_norm(x, [4096], weight[0], weight[1], 1e-5), 1,
            [(LOAD, 1, 4096), (LOAD, 1, 1), (LOAD, 1, 1)],
        ),
        "attention": (lambda: attention.attention(query, key, key, short, scores), 1, [out]),
        "attention, splits side by side": (
            lambda: attention.attention(query, key, key, long, scores, parallel=True), 2, [out, out]
        ),
        **fused_calls(),
    }  # fmt: skip


def fused_calls() -> dict[str, Call]:
    """Calls of the fused forms, with all that they look at before a launch."""
    x, gate = half(LOAD, 1, 4096), half(LOAD, 1, 14336)
    module = SimpleNamespace(_parameters={"weight": half(4096)}, variance_epsilon=1e-5)
    module.weight = module._parameters["weight"]
    counters: Calls = {"reduce": Counter(), "norm": Counter()}
    norm_form = gpu.NormOnGpu(templates.rms_norm, counters)
    norms = FusedNorm(templates.rms_norm, counters)
    sums = gpu_layer.LayerOnGpu(counters, {})
    query, key = (half(LOAD, 1, heads, 128).transpose(1, 2) for heads in (32, 8))
    cos, rotate = half(LOAD, 1, 128), gpu.rotation(templates.apply_rotary_pos_emb)
    return {
        "norm of a sum": (
            lambda: (sums.launch(norms, module, x, x) or silent)(x, x, module.weight),
            1, [(LOAD, 1, 4096)] * 2,
        ),
        "norm": (lambda: norm_form(module, x), 1, [(LOAD, 1, 4096)]),
        "rotary positions": (
            lambda: rotate(query, key, cos, cos), 1, [(LOAD, 1, 32, 128), (LOAD, 1, 8, 128)]
        ),
        "gated activation": (lambda: gpu.activated(gate, gate), 1, [(LOAD, 1, 14336)]),
    }  # fmt: skip


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let fused forms take tensors on the CPU for tensors on a GPU.

    Their proofs compare nothing, as the driver computes nothing.
    """
    with (
        mock.patch.object(gpu, "is_on_gpu", attrgetter("is_cpu")),
        mock.patch.object(gpu, "same_bits", return_value=True),
        mock.patch.object(gpu_layer, "same_bits", return_value=True),
        mock.patch.object(LINEAR, "function", F.linear),
    ):
        yield


def half(*shape: int) -> torch.Tensor:
    """Random bfloat16."""
    return torch.randn(shape).bfloat16()


def allocations(shapes: list[tuple[int, ...]]) -> Callable[[], object]:
    """A call that allocates results of these shapes, as a kept launch does, and nothing else."""
    rooms = [launch.room(half(1), shape) for shape in shapes]
    return lambda: [allocate() for allocate in rooms]


def through_triton(call: Callable[[], object]) -> float:
    """Microseconds of the same call if Triton launches it, as a profiler makes it."""
    hooks = launch._launch_hooks()
    hooks.calls.append(silent)
    try:
        return microseconds(call)
    finally:
        hooks.calls.remove(silent)


def silent(*_: object) -> None:
    """A hook that does nothing."""


def microseconds(call: Callable[[], object]) -> float:
    """The fastest round's microseconds a call."""
    call()
    call()
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6
