"""Fused modules have the bits of the modules' own code, and step aside if somebody looks inside."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
import transformers as T
from fused_models import MODELS, NORM, TOKENS, generated, llama, made, same, unfused
from sweeps import few
from torch import nn

from detcheck.kernels.cpu import packed_weight
from detcheck.kernels.cpu.packed import ROOM_MADE, STORE
from detcheck.kernels.fused import attention as fused_attention
from detcheck.kernels.fused.classes import FUSED
from detcheck.kernels.fused.steps import PagedReads, Step
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.skipif(
    torch.bfloat16 not in packed_weight._dtypes(), reason="oneDNN packs no bfloat16 here"
)


@few("dtype", [torch.float32, torch.bfloat16], ids=str)
@few("name", MODELS)
def test_fused_modules_have_the_bits_of_their_own_code(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, served: Counter[str]
) -> None:
    model = made(name, dtype)
    with batch_invariant():
        served.clear()
        with unfused(monkeypatch):
            expected = generated(model)
        assert not served
        assert same(generated(model), expected)
    assert served
    assert served["compute"] or name == "olmo2"  # norms its queries before they are heads


def answers(model: Any, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of continuous batching, in the order of the prompts."""
    sizes = {"page_size": 32, "num_blocks": 16, "max_batch_tokens": 64}
    found = model.generate_batch(
        prompts,
        generation_config=T.GenerationConfig(
            max_new_tokens=70, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=T.ContinuousBatchingConfig(**sizes, return_logprobs=True),
        progress_bar=False,
    )
    return [(found[key].generated_tokens, found[key].logprobs) for key in sorted(found)]


PROMPTS = [row[: 3 + 2 * index].tolist() for index, row in enumerate(TOKENS)]


@few("mode", ["batch-invariant", "fully-invariant"])
@few("name", ["llama", "llama with biases", "qwen3", "mistral", "mistral, window"])
@few("prompts", [PROMPTS, PROMPTS[3:]], ids=["several", "one"])
def test_the_same_in_continuous_batching(
    prompts: list[list[int]],
    name: str,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    served: Counter[str],
) -> None:
    model = made(name)
    with kernels_in_force(mode):
        with unfused(monkeypatch):
            expected = answers(model, prompts)
        paged = fused_attention._paged
        alone = []
        monkeypatch.setattr(
            fused_attention, "_paged", lambda *args: alone.append(paged(*args)) or alone[-1]
        )
        assert answers(model, prompts) == expected
    assert all(len(logprobs) == 70 for _, logprobs in expected)
    assert served["compute"]
    assert any(out is not None for out in alone) or "window" in name


def test_the_same_check_catches_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one part in a hundred, in the layers of decoding steps alone."""
    model, attend = made("llama"), PagedReads.attend
    with kernels_in_force("batch-invariant"):
        with unfused(monkeypatch):
            expected = answers(model, PROMPTS)
        monkeypatch.setattr(PagedReads, "attend", lambda *args: attend(*args) * 1.01)
        assert answers(model, PROMPTS) != expected


def test_the_same_check_catches_a_wrong_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    with batch_invariant():
        with unfused(monkeypatch):
            expected = generated(model)
        turned = Step.turned
        monkeypatch.setattr(Step, "turned", lambda self, x: turned(self, x) * 2)
        assert same(generated(model), expected)  # it is compared with the module's own
        monkeypatch.setattr(fused_attention, "_turns_as", lambda *_: True)
        model = made("llama")
        assert not same(generated(model), expected)


def test_the_calls_of_overrides_are_counted_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    counts = []
    for context in (unfused(monkeypatch), torch.no_grad()):
        with batch_invariant() as mode, context:
            generated(model)
            before = Counter(mode.proof().overrides)
            generated(model)
            after = Counter(mode.proof().overrides)
            counts.append({op: n for op, n in (after - before).items() if op in COUNTED})
            assert mode.proof().fault is None
    assert counts[0] == counts[1]
    assert all(counts[0][op] for op in COUNTED)


COUNTED = ("aten::linear", "transformers::sdpa", "aten::mean.dim", "aten::rsqrt", "aten::silu")


def test_a_row_alone_and_in_its_batch(served: Counter[str]) -> None:
    model = made("llama")
    with torch.no_grad(), batch_invariant():
        whole = model(TOKENS).logits
        alone = torch.cat([model(row[None]).logits for row in TOKENS])
    assert served
    assert torch.equal(alone, whole)


def test_a_module_that_is_watched_runs_its_own_code(served: Counter[str]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            ops[str(func)] += 1
            return func(*args, **(kwargs or {}))

    ops: Counter[str] = Counter()
    model = made("llama")
    with torch.no_grad(), batch_invariant():
        expected = model(TOKENS).logits
        served.clear()
        with Watch():
            watched = model(TOKENS).logits
    assert torch.equal(watched, expected)
    assert not served
    assert ops["aten.mean.dim"] == 5


def test_gradients_and_autocast_take_the_modules_own_code(served: Counter[str]) -> None:
    model = made("llama", torch.float32)
    with batch_invariant():
        with torch.no_grad():
            expected = model(TOKENS).logits
        served.clear()
        trained = model(TOKENS).logits
        trained.sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(model(TOKENS).logits, expected)
        assert not served
        assert torch.equal(trained, expected)
    assert all(layer.mlp.up_proj.weight.grad.any() for layer in model.model.layers)


def test_gradient_checkpointing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama", torch.float32).train()
    name = "activation_checkpointing_enable"  # since transformers 5.23
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    calls = []
    for layer in model.model.layers:
        stock = layer._gradient_checkpointing_func

        def counted(*args: Any, stock: Any = stock) -> Any:
            calls.append(1)
            return stock(*args)

        monkeypatch.setattr(layer, "_gradient_checkpointing_func", counted)
    with batch_invariant():
        model(TOKENS).logits.sum().backward()
    assert len(calls) == 2


def test_weights_are_packed_once() -> None:
    """Side by side or each by itself, not both, once a model decodes."""
    model = made("llama")
    with batch_invariant() as mode:
        generated(model)
        linears = [each for each in model.modules() if isinstance(each, nn.Linear)]
        weights = sum(each.weight.nbytes for each in linears)
        assert len(STORE.side_by_side) == 4
        assert weights <= mode.proof().packed_bytes < 1.2 * weights


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one copy of each weight, and not for a second one of any."""
    model = made("llama")
    linears = [each for each in model.modules() if isinstance(each, nn.Linear)]
    needed = 2 * sum(each.weight.nbytes for each in linears) + 1000
    monkeypatch.setattr("detcheck.kernels.cpu.packed.available_bytes", lambda: needed)


@pytest.mark.usefixtures("short_memory")
def test_if_memory_is_short_weights_that_are_needed_alone_stay_alone(
    served: Counter[str],
) -> None:
    model = made("llama")
    with batch_invariant():
        with torch.no_grad():
            expected = model(TOKENS).logits
        for _ in range(ROOM_MADE):
            with torch.no_grad():
                assert torch.equal(model(TOKENS).logits, expected)
            assert torch.equal(model(TOKENS).logits.detach(), expected)  # each weight by itself
            assert not STORE.side_by_side
        served.clear()
        with torch.no_grad():
            assert torch.equal(model(TOKENS).logits, expected)
        assert served.keys() == {NORM}


def test_weights_whose_products_change_are_not_packed_side_by_side(
    monkeypatch: pytest.MonkeyPatch, served: Counter[str]
) -> None:
    stock = packed_weight.product

    def unlike(left: torch.Tensor, packed: torch.Tensor, bias: Any) -> torch.Tensor:
        """A product that rounds down if there are many columns."""
        found = stock(left, packed, bias)
        return found * 0.99 if found.shape[-1] > 200 else found

    monkeypatch.setattr(packed_weight, "product", unlike)
    packed_weight._side_by_side.cache_clear()
    try:
        model = made("llama")
        with batch_invariant():
            generated(model)
            assert not STORE.side_by_side
    finally:
        packed_weight._side_by_side.cache_clear()
    assert served.keys() == {NORM}


def test_forwards_come_back_afterwards() -> None:
    kinds = (llama.LlamaRMSNorm, llama.LlamaMLP, llama.LlamaAttention, llama.LlamaDecoderLayer)
    before = [kind.forward for kind in kinds]
    inside = llama.LlamaDecoderLayer.forward.__wrapped__
    with batch_invariant():
        assert {*kinds} <= FUSED._forms.keys()
        with batch_invariant():
            pass
        assert all(kind.forward is not own for kind, own in zip(kinds[:3], before, strict=False))
    assert [kind.forward for kind in kinds] == before
    assert not FUSED._forms
    cells = [cell.cell_contents for cell in llama.LlamaDecoderLayer.forward.__closure__]
    assert inside in cells


IMPORTED_LATER = """
import torch, detcheck
from detcheck.kernels.fused.classes import FUSED
with detcheck.batch_invariant():
    import transformers as T
    from transformers.models.llama import modeling_llama as llama
    model = T.LlamaForCausalLM(T.LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1)).eval()
    with torch.no_grad():
        model(torch.ones(1, 2, dtype=torch.int64))
    print(llama.LlamaMLP in FUSED._forms)
"""


@pytest.mark.sweep
def test_a_model_that_is_imported_inside_a_mode_is_served() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_LATER], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True"], done.stderr
