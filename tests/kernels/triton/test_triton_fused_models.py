"""Models whose norms, gated activations and rotary positions are one launch each.

They have the bits of the modules' own code, and everything is as before outside of the mode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as T
from torch.nn import functional as F
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama
from under_test import DEVICE, INTERPRETED, ROUNDED_DTYPES, WITH_FORMS_ON_GPU, random

from detcheck.kernels.fused import calls, gpu, gpu_layer, proofs
from detcheck.kernels.fused.classes import FUSED
from detcheck.kernels.mode import BatchInvariantMode, batch_invariant

pytestmark = WITH_FORMS_ON_GPU
llama: Any = modeling_llama
OWN_ROTATION, OWN_NORM = llama.apply_rotary_pos_emb, llama.LlamaRMSNorm.forward

SMALL: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48, "pad_token_id": 0,
    "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SMALL)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SMALL)),
}
TOKENS = torch.arange(1, 13, device=DEVICE).view(2, 6)


def model_of(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(1)
    model = MODELS[name]().to(DEVICE, dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = random(5, *parameter.shape, dtype=dtype)
    return model


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The calls that are served in one launch, by form."""
    served: Counter[str] = Counter()
    for name in ("activated", "_turned"):
        function = getattr(gpu, name)

        def counted(*given: Any, function: Any = function, name: str = name) -> Any:
            found = function(*given)
            if found is not None:
                served[name] += 1
            return found

        monkeypatch.setattr(gpu, name, counted)
    own = gpu.NormOnGpu.__call__

    def normed(self: Any, module: Any, x: torch.Tensor) -> Any:
        found = own(self, module, x)
        if found is not None:
            served["normed"] += 1
        return found

    monkeypatch.setattr(gpu.NormOnGpu, "__call__", normed)
    launch = gpu_layer.LayerOnGpu.launch

    def summed(*given: Any) -> Any:
        found = launch(*given)
        if found is not None and not torch._C._len_torch_dispatch_stack():
            served["summed"] += 1
        return found

    monkeypatch.setattr(gpu_layer.LayerOnGpu, "launch", summed)
    return served


def without(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    """The result of a call if every module runs its own code."""
    with monkeypatch.context() as patch:
        for module in (gpu, gpu_layer):
            patch.setattr(module, "is_plain", lambda x: False)
        return call()


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_bits_and_the_counts_of_its_own_code(
    mode: BatchInvariantMode, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch,
    fused: Counter[str],
) -> None:  # fmt: skip
    model = model_of(name, dtype)
    counts = []

    def passed() -> Any:
        before = Counter(mode.proof().overrides)
        logits = model(TOKENS).logits
        counts.append(Counter(mode.proof().overrides) - before)
        return logits

    passed()
    assert [{*found.values()} for found in gpu_layer.tried_kinds().values()] == [{None}] * 4
    passed()
    assert not fused  # watched passes run the own code
    expected = without(monkeypatch, passed)
    assert not fused
    assert torch.equal(passed(), expected)
    norms = 5 if name == "llama" else 9
    assert fused == {"normed": norms - 2, "summed": 2, "_turned": 2, "activated": 2}
    ours, own = counts[-1], counts[-2]
    assert ours["aten::mean.dim"] == own["aten::mean.dim"] == norms
    assert ours["aten::linear"] == own["aten::linear"]


def changed_hook(model: Any) -> Callable[[], None]:
    handle = model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *given: given[-1] / 2)
    return handle.remove  # type: ignore[no-any-return]


def changed_norm(model: Any) -> Callable[[], None]:
    norm = model.model.layers[0].post_attention_layernorm
    return norm.register_forward_hook(lambda *given: given[-1] / 2).remove  # type: ignore[no-any-return]


def changed_norm_before(model: Any) -> Callable[[], None]:
    norm = model.model.layers[1].post_attention_layernorm
    return norm.register_forward_pre_hook(lambda module, given: (given[0] / 2 + 1,)).remove  # type: ignore[no-any-return]


def changed_norm_class(model: Any) -> Callable[[], None]:
    own = llama.LlamaRMSNorm.forward
    llama.LlamaRMSNorm.forward = lambda self, x: own(self, x) / 2
    return lambda: setattr(llama.LlamaRMSNorm, "forward", own)


def changed_attention(model: Any) -> Callable[[], None]:
    attention = model.model.layers[0].self_attn
    return attention.register_forward_hook(lambda *given: (given[-1][0].half(), None)).remove  # type: ignore[no-any-return]


def changed_every_module(model: Any) -> Callable[[], None]:
    hooks = torch.nn.modules.module.register_module_forward_hook
    return hooks(  # type: ignore[no-any-return]
        lambda module, given, out: out / 2 if isinstance(module, SiLUActivation) else None
    ).remove


def changed_half(model: Any) -> Callable[[], None]:
    own, llama.rotate_half = llama.rotate_half, lambda x: x
    return lambda: setattr(llama, "rotate_half", own)


def changed_projection(model: Any) -> Callable[[], None]:
    up = model.model.layers[0].mlp.up_proj
    up.forward = lambda x: F.linear(x, up.weight) / 2
    return lambda: delattr(up, "forward")


def changed_activation(model: Any) -> Callable[[], None]:
    part = model.model.layers[0].mlp
    own, part.act_fn = part.act_fn, torch.nn.ReLU()
    return lambda: setattr(part, "act_fn", own)


def changed_rotation(model: Any) -> Callable[[], None]:
    ours = llama.apply_rotary_pos_emb
    llama.apply_rotary_pos_emb = lambda q, k, cos, sin: (q, k)
    return lambda: setattr(llama, "apply_rotary_pos_emb", ours)


CHANGES = [changed_norm, changed_norm_before, changed_norm_class, changed_attention,
           changed_hook, changed_every_module, changed_half, changed_projection,
           changed_activation, changed_rotation]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_of_a_model_are_seen(
    mode: BatchInvariantMode, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama", torch.float32)

    def passed() -> torch.Tensor:
        return model(TOKENS).logits  # type: ignore[no-any-return]

    for _ in range(3):
        before = passed()
    undo = change(model)
    expected = without(monkeypatch, passed)
    assert torch.equal(passed(), expected)
    assert not torch.equal(expected, before)
    undo()
    assert torch.equal(passed(), before)


def test_gradients_autocast_and_other_modes_run_the_own_code(
    mode: BatchInvariantMode, fused: Counter[str]
) -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    model = model_of("llama", torch.float32)
    for _ in range(3):
        model(TOKENS)
    assert fused
    fused.clear()
    autocast = torch.autocast("cuda", torch.float16)
    autocast._enabled = True  # also without a GPU
    for context in (torch.enable_grad(), Functions(), Ops(), autocast):
        with context:
            model(TOKENS)
        assert not fused
    model(TOKENS)
    assert fused


def test_functions_come_back_after_nested_modes_and_exceptions() -> None:
    assert llama.apply_rotary_pos_emb is OWN_ROTATION
    with batch_invariant(pack_weights="off"):
        ours = llama.apply_rotary_pos_emb
        assert ours is not OWN_ROTATION
        with pytest.raises(KeyError), batch_invariant(pack_weights="off"):
            raise KeyError(llama.apply_rotary_pos_emb is ours)
        assert llama.apply_rotary_pos_emb is ours
        assert llama.LlamaAttention in FUSED._forms
    assert llama.apply_rotary_pos_emb is OWN_ROTATION
    assert llama.LlamaRMSNorm.forward is OWN_NORM


def test_a_function_that_was_taken_along_is_the_own_one_outside(
    monkeypatch: pytest.MonkeyPatch, fused: Counter[str]
) -> None:
    """A module may import it inside a mode. In the next mode it serves again."""
    with batch_invariant(pack_weights="off"):
        taken = llama.apply_rotary_pos_emb
    with torch.no_grad():
        q, cos = random(1, 1, 2, 3, 64), random(3, 1, 3, 64)
        expected = OWN_ROTATION(q, q, cos, cos)
        assert all(map(proofs.same_bits, taken(q, q, cos, cos), expected))
        assert not fused
        monkeypatch.setattr(llama, "apply_rotary_pos_emb", taken)
        with batch_invariant(pack_weights="off"):
            assert llama.LlamaAttention in FUSED._forms
            assert all(map(proofs.same_bits, llama.apply_rotary_pos_emb(q, q, cos, cos), expected))
    assert fused["_turned"] == 1


@pytest.mark.skipif(not INTERPRETED, reason="this machine has kernels")
def test_nothing_is_replaced_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "why_unavailable", lambda: "no GPU")
    with batch_invariant(pack_weights="off"):
        assert llama.apply_rotary_pos_emb is OWN_ROTATION
        assert FUSED._forms[llama.LlamaRMSNorm]._on_gpu is None
