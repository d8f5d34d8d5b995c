"""Norms, gated activations and rotary positions in one launch have the bits of the own code.

In the interpreter tensors on the CPU are taken for tensors on a GPU, and our Triton kernels stand
for PyTorch's reductions on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama import modeling_llama
from under_test import (
    DEVICE,
    INTERPRETED,
    ROUNDED_DTYPES,
    WITH_FORMS_ON_GPU,
    fused_rows,
    random,
    rotary,
)

from detcheck.kernels.fused import gpu, gpu_layer, proofs
from detcheck.kernels.fused.classes import FUSED
from detcheck.kernels.mode import BatchInvariantMode

pytestmark = WITH_FORMS_ON_GPU
llama: Any = modeling_llama
OWN_ROTATION, OWN_NORM = llama.apply_rotary_pos_emb, llama.LlamaRMSNorm.forward
EPSILON = 1e-6


Layout = Callable[..., torch.Tensor]


def transposed(seed: int, rows: int, heads: int, tokens: int, dim: int) -> torch.Tensor:
    """As models have it: (rows, tokens, heads, dim) in memory."""
    return random(seed, rows, tokens, heads, dim).transpose(1, 2)


def packed(seed: int, rows: int, heads: int, tokens: int, dim: int) -> torch.Tensor:
    """Of a product that has other columns, too."""
    return random(seed, rows, tokens, heads + 2, dim)[:, :, 1:-1].transpose(1, 2)


LAYOUTS: dict[str, Layout] = {"transposed": transposed, "packed": packed, "contiguous": random}
SIZES = [(1, 4, 2, 5, 64), (3, 3, 1, 1, 32), (2, 5, 5, 3, 80), (1, 20, 1, 2, 48), (2, 1, 1, 7, 256)]
"""Rows, heads of queries and of keys, tokens, size of a head."""


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rotation_has_the_bits_and_the_layout_of_the_own_function(
    size: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    rows, heads, k_heads, tokens, dim = size
    q, k = (LAYOUTS[layout](i, rows, n, tokens, dim).to(dtype)
            for i, n in enumerate((heads, k_heads)))  # fmt: skip
    for of in {1, rows}:
        cos, sin = (random(seed, of, tokens, dim, dtype=dtype) for seed in (3, 4))
        assert rotary.serves(q, k, cos)
        turned = rotary.Rotation(q, k, cos)(q, k, cos, sin)
        for one, own in zip(turned, OWN_ROTATION(q, k, cos, sin), strict=True):
            assert proofs.same_bits(one, own)
            assert one.transpose(1, 2).is_contiguous() == own.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, cos, sin: (q.double(), k.double(), cos.double(), sin.double()),
        lambda q, k, cos, sin: (q.half(), k.half(), cos, sin),
        lambda q, k, cos, sin: (q[0], k[0], cos, sin),
        lambda q, k, cos, sin: (q, k, cos[:, :1], sin[:, :1]),
        lambda q, k, cos, sin: (q.mT.contiguous().mT, k, cos, sin),
        lambda q, k, cos, sin: (q[..., :31], k[..., :31], cos[..., :31], sin[..., :31]),
        lambda *given: tuple(x[..., :24].contiguous() for x in given),
        lambda q, k, cos, sin: (q[:0], k[:0], cos, sin),
        lambda q, k, cos, sin: (q, k, cos, sin[:1]),
    ],
    ids=["float64", "mixed", "3-d", "one position", "strided", "odd", "24", "empty", "other sines"],
)
def test_other_operands_run_the_own_function(mode: BatchInvariantMode, change: Any) -> None:
    given = (transposed(1, 2, 4, 5, 32), transposed(2, 2, 2, 5, 32),
             random(3, 2, 5, 32), random(4, 2, 5, 32))  # fmt: skip
    changed = change(*given)

    def result(function: Any) -> Any:
        try:
            return function(*changed)
        except RuntimeError as error:
            return str(error)

    before = result(OWN_ROTATION)
    after = result(llama.apply_rotary_pos_emb)
    assert [*gpu.ROTATIONS.launches.values()] in ([None], [])
    assert not gpu.ROTATIONS.faults
    if isinstance(before, str):
        assert before == after
    else:
        assert all(map(proofs.same_bits, before, after))


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
@pytest.mark.parametrize("length", [48, 64, 576, 4096, 4112])
def test_a_norm_has_the_bits_of_the_own_code(
    mode: BatchInvariantMode, length: int, dtype: torch.dtype
) -> None:
    module = llama.LlamaRMSNorm(length, EPSILON).to(DEVICE, dtype)
    module.weight.data = random(1, length, dtype=dtype)
    x = random(2, 2, 3, length, dtype=dtype) * 3
    before = mode.proof().overrides["aten::mean.dim"]
    out = module.forward(x)
    assert [*gpu.NORMS.faults.values()] == [None]
    assert mode.proof().overrides["aten::mean.dim"] == before + 1
    assert proofs.same_bits(out, OWN_NORM(module, x))
    assert torch.equal(module.forward(x[1:, 2:]), out[1:, 2:])


@pytest.mark.parametrize(
    "change",
    [lambda x: x[..., :24], lambda x: x[..., :60], lambda x: x.double(), lambda x: x[:0],
     lambda x: x.flatten()[8:8 + 64 * 5].view(5, 64)[:, 1:], lambda x: x.mT.contiguous().mT,
     lambda x: x.flatten()[1:65]],
    ids=["short", "no multiple", "float64", "empty", "slice", "strided", "not aligned"],
)  # fmt: skip
def test_other_rows_run_the_own_norm(mode: BatchInvariantMode, change: Any) -> None:
    x = change(random(1, 6, 64))
    module = llama.LlamaRMSNorm(x.shape[-1]).to(DEVICE, x.dtype)
    assert proofs.same_bits(module.forward(x), OWN_NORM(module, x))
    assert not gpu.NORMS.faults


def test_a_weight_that_is_not_aligned_runs_the_own_norm(mode: BatchInvariantMode) -> None:
    module, x = llama.LlamaRMSNorm(64).to(DEVICE), random(1, 6, 64)
    module.weight.data = random(2, 65)[1:]
    layers = gpu_layer.LayerOnGpu({"reduce": Counter()}, FUSED._forms)
    assert layers.launch(FUSED._forms[llama.LlamaRMSNorm], module, x, x) is None
    assert proofs.same_bits(module.forward(x), OWN_NORM(module, x))
    assert not gpu.NORMS.faults
    assert not gpu_layer.SUMS.faults


def test_a_norm_of_another_dtype_or_epsilon_runs_its_own_code(mode: BatchInvariantMode) -> None:
    module, x = llama.LlamaRMSNorm(64).to(DEVICE), random(1, 6, 64)
    assert module.forward(x.half()).dtype == torch.float32
    module.variance_epsilon = torch.tensor(EPSILON, device=DEVICE)
    module.forward(x)
    assert not gpu.NORMS.faults
    assert {*gpu.NORMS.launches.values()} == {None}


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
@pytest.mark.parametrize("length", [48, 4112])
def test_a_norm_of_a_sum_has_the_bits_of_two_calls(
    mode: BatchInvariantMode, length: int, dtype: torch.dtype
) -> None:
    module = llama.LlamaRMSNorm(length, EPSILON).to(DEVICE, dtype)
    module.weight.data = random(1, length, dtype=dtype)
    x, y = (random(seed, 2, 3, length, dtype=dtype) for seed in (2, 3))
    summed, normed = fused_rows.summed_norm(x, EPSILON)(x, y, module.weight)
    assert proofs.same_bits(summed, x + y)
    assert proofs.same_bits(normed, OWN_NORM(module, x + y))


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 64, 1000, 2048])
def test_a_gated_activation_has_the_bits_of_two_calls(count: int, dtype: torch.dtype) -> None:
    gate, up = random(1, 2, count, dtype=dtype) * 9, random(2, 2, count, dtype=dtype)
    product = fused_rows.silu_times(gate)(gate, up)[0]
    assert proofs.same_bits(product, F.silu(gate) * up)


class Wrong:
    """A launch whose first result has another last bit in one entry."""

    def __init__(self, launch: Any):
        self.launch = launch

    def __call__(self, *given: torch.Tensor) -> Any:
        results = self.launch(*given)
        flat = results[0].view(-1) if results[0].is_contiguous() else results[0][0, 0, 0]
        flat[3:4].view(torch.int32).bitwise_xor_(1)
        return results


FORMS: dict[str, tuple[Any, str]] = {
    "norm": (fused_rows, "weighted_norm"),
    "norm of a sum": (fused_rows, "summed_norm"),
    "activation": (fused_rows, "silu_times"),
    "rotation": (rotary, "Rotation"),
}


def table_of(form: str) -> proofs.ProvenLaunches:
    """The launches of a form in this test."""
    return {
        "norm": gpu.NORMS,
        "norm of a sum": gpu_layer.SUMS,
        "activation": gpu.ACTIVATIONS,
        "rotation": gpu.ROTATIONS,
    }[form]


def served_by(form: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results of a form inside a mode, and those of the own code."""
    x, y = random(1, 6, 64), random(2, 6, 64)
    if form == "norm":
        module = llama.LlamaRMSNorm(64).to(DEVICE)
        return [module.forward(x)], [OWN_NORM(module, x)]
    if form == "activation":
        product = gpu.activated(x, y)
        return [F.silu(x) * y if product is None else product], [F.silu(x) * y]
    if form == "norm of a sum":
        module = llama.LlamaRMSNorm(64).to(DEVICE)
        layers = gpu_layer.LayerOnGpu({"reduce": Counter()}, FUSED._forms)
        launch = layers.launch(FUSED._forms[llama.LlamaRMSNorm], module, x, y)
        own = [x + y, OWN_NORM(module, x + y)]
        return own if launch is None else launch(x, y, module.weight), own
    q, cos, sin = transposed(1, 1, 2, 3, 64), random(3, 1, 3, 64), random(4, 1, 3, 64)
    return [*llama.apply_rotary_pos_emb(q, q, cos, sin)], [*OWN_ROTATION(q, q, cos, sin)]


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_is_proven_and_serves(mode: BatchInvariantMode, form: str) -> None:
    one, own = served_by(form)
    assert all(map(proofs.same_bits, one, own))
    table = table_of(form)
    assert [*gpu_layer.tried_kinds()[form].values()] == [None]
    assert None not in table.launches.values()


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_with_a_wrong_bit_never_serves(
    mode: BatchInvariantMode, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, name = FORMS[form]
    make = getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *given: Wrong(make(*given)))
    for _ in range(2):
        one, own = served_by(form)
        assert all(map(proofs.same_bits, one, own))
    assert [*gpu_layer.tried_kinds()[form].values()] == [proofs.DIFFERENT]
    assert {*table_of(form).launches.values()} == {None}


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU it is right")
def test_the_bfloat16_of_the_interpreter_is_found_to_be_another_one(
    mode: BatchInvariantMode,
) -> None:
    module, x = llama.LlamaRMSNorm(64).to(torch.bfloat16), random(1, 6, 64, dtype=torch.bfloat16)
    assert torch.equal(module.forward(x), OWN_NORM(module, x))
    assert [*gpu.NORMS.faults.values()] == [proofs.DIFFERENT]


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_that_does_not_compile_never_serves(
    mode: BatchInvariantMode, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, name = FORMS[form]

    def fail(*given: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(holder, name, fail)
    one, own = served_by(form)
    assert all(map(proofs.same_bits, one, own))
    assert [*table_of(form).faults.values()] == ["RuntimeError: no such instruction"]


@pytest.mark.parametrize("form", FORMS)
def test_while_a_graph_is_captured_nothing_is_tried(
    mode: BatchInvariantMode, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(form)
    with monkeypatch.context() as patch:
        patch.setattr(proofs, "capturing", lambda: True)
        served_by(form)
        assert not table.faults
        assert not table.launches
    served_by(form)
    with monkeypatch.context() as patch:
        patch.setattr(proofs, "capturing", lambda: True)
        served_by(form)
    assert [*table.faults.values()] == [None]


def test_a_comparison_for_which_memory_is_short_is_made_again(
    mode: BatchInvariantMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(proofs, "random", short)
        served_by("norm")
    assert not gpu.NORMS.faults
    served_by("norm")
    assert [*gpu.NORMS.faults.values()] == [None]
