"""The Triton kernels behind PyTorch's own ops: signatures, gradients, and who is registered."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from under_test import INTERPRETED, ops, random

from detcheck.errors import UsageError
from detcheck.kernels import overrides, triton
from detcheck.kernels.coverage import Coverage
from detcheck.kernels.triton import self_check as cuda_self_check

KEY = "CPU" if INTERPRETED else "CUDA"
NAMES = [op for table in ops.KERNELS.values() for op in table]


@pytest.fixture
def overridden() -> Iterator[Counter[str]]:
    """Every kernel in place of its op, on the device under test; counts their calls."""
    calls: Counter[str] = Counter()
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for table in ops.KERNELS.values():
            for op, kernel in table.items():
                library.impl(op, overrides._counted(op, kernel, calls), KEY)
    yield calls
    library._destroy()


def test_ops_reach_the_kernels_and_give_right_gradients(overridden: Counter[str]) -> None:
    """A trainer's path through every family, against stock in float64."""
    x, weight, bias = random(1, 2, 5, 24), random(2, 24, 24), random(3, 24)

    def loss(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        hidden = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        hidden = F.linear(hidden, weight, bias) + F.linear(hidden, weight)
        scores = torch.softmax(hidden @ hidden.transpose(1, 2), -1) @ hidden
        scores = torch.baddbmm(bias, scores, weight.expand(2, 24, 24))
        scores = F.layer_norm(scores, (24,), bias, bias) + scores.logsumexp(-1, keepdim=True)
        scores = scores / torch.linalg.vector_norm(scores, 2, -1, keepdim=True)
        scores = scores * (1 + scores[..., :3]).prod(-1, keepdim=True)
        scores = scores + scores.cumsum(-1) / 24
        return -torch.log_softmax(scores, -1)[..., 3].sum((0, 1))

    got = gradients(loss, x, weight, bias)
    served = {name for name in NAMES if overridden[name]}
    assert served == {*NAMES} - {"_fused_rms_norm", "_grouped_mm", "nansum", "topk"}
    stock = gradients(loss, x.double(), weight.double(), bias.double())
    for one, expected in zip(got, stock, strict=True):
        torch.testing.assert_close(one, expected.float(), rtol=1e-4, atol=1e-4)


def test_experts_reach_the_kernel_and_give_right_gradients(overridden: Counter[str]) -> None:
    """As a model with experts calls it; tokens are sorted by expert."""
    x, weight = random(1, 9, 24), random(2, 3, 8, 24)
    offsets = torch.tensor([2, 2, 9], dtype=torch.int32, device=x.device)

    def loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.grouped_mm(x, weight.mT, offs=offsets).float().square().sum()

    def stock(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return sum((x[a:b] @ weight[e].mT).square().sum() for e, a, b in ((0, 0, 2), (2, 2, 9)))

    got, expected = gradients(loss, x, weight), gradients(stock, x.double(), weight.double())
    assert overridden["_grouped_mm"] >= 2
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-4)


def mixture() -> torch.nn.Module:
    """The experts of a Qwen3-MoE of 6 experts, 2 a token."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=24, moe_intermediate_size=16, num_experts=6, num_experts_per_tok=2
    )
    experts = Qwen3MoeExperts(config).float()
    for index, parameter in enumerate(experts.parameters()):
        parameter.data = random(20 + index, *parameter.shape)
    return experts


def test_a_token_of_a_mixture_does_not_depend_on_the_other_tokens(
    overridden: Counter[str],
) -> None:
    """transformers' grouped implementation on our kernels, against its loop in float64."""
    moe = pytest.importorskip("transformers.integrations.moe")
    module, tokens = mixture(), random(1, 12, 24)
    chosen = torch.tensor([[i % 6, (i + 1 + i // 6) % 6] for i in range(12)], device=tokens.device)
    weights = random(2, 12, 2).softmax(-1)
    with torch.no_grad():
        whole = moe.grouped_mm_experts_forward(module, tokens, chosen, weights)
        assert overridden["_grouped_mm"] == 2
        for row in (0, 7, 11):
            one = slice(row, row + 1)
            alone = moe.grouped_mm_experts_forward(module, tokens[one], chosen[one], weights[one])
            assert torch.equal(alone[0], whole[row])
        loop = type(module).forward.__wrapped__(
            module.double(), tokens.double(), chosen, weights.double()
        )
    torch.testing.assert_close(whole, loop.float(), rtol=1e-4, atol=1e-4)


def gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the mode's own tests cover it")
def test_they_are_registered_for_cuda_only_where_they_can_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "CUDA" not in overrides.kernels_of("matmul")
    monkeypatch.setattr(overrides, "why_unavailable", lambda: None)
    assert set(overrides.kernels_of("matmul")["CUDA"]) == {*ops.KERNELS["matmul"]}
    assert "aten::_fused_rms_norm" in overrides.op_names("norm")
    remove = overrides.install("matmul", Counter())
    try:
        assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::baddbmm", "CUDA")
        F.linear(random(1, 3, 16), random(2, 8, 16))  # on the CPU: by the CPU's kernels
    finally:
        remove()
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::baddbmm", "CUDA")


def test_every_family_on_the_gpu_has_a_self_check() -> None:
    assert set(cuda_self_check.CHECKS) == {*ops.KERNELS, "attention"}


@pytest.mark.parametrize(
    ("gpu", "installed", "said"),
    [(False, True, "no CUDA GPU"), (True, False, "pip install triton"), (True, True, "8.0")],
)
def test_why_unavailable_says_how_to_mend_it(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: bool, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(triton, "find_spec", lambda name: object() if installed else None)
    assert said in str(triton.why_unavailable.__wrapped__())


def test_an_engine_refuses_a_gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from detcheck.engines import in_process

    engine = object.__new__(in_process.InProcessEngine)
    engine.experiment = SimpleNamespace(kernels=("stock", "batch-invariant"))
    engine._longest = 40
    engine.loaded = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(in_process, "why_unavailable", lambda: "Triton is missing.")
    with pytest.raises(UsageError, match="Triton is missing"):
        engine._check_kernels()
    monkeypatch.setattr(in_process, "why_unavailable", lambda: None)
    looked_at: list[object] = []

    def require_coverage(*model: object, one_length: bool) -> Coverage:
        looked_at.append(model)
        return Coverage((), (), False)

    monkeypatch.setattr(in_process, "require_coverage", require_coverage)
    engine.loaded = SimpleNamespace(device=torch.device("cuda"), model="model", name="name")
    engine._check_kernels()
    assert looked_at == [("model", "name", 40)]
    engine.loaded = SimpleNamespace(device=torch.device("meta"))
    with pytest.raises(UsageError, match="no batch-invariant kernels for meta"):
        engine._check_kernels()
