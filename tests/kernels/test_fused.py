"""Fused modules have the bits of the modules' own code, and step aside if somebody looks inside."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as T
from sweeps import few
from torch import nn
from transformers.models.llama import modeling_llama

from detcheck.kernels.cpu import packed_weight
from detcheck.kernels.cpu.packed import ROOM_MADE, STORE
from detcheck.kernels.fused import attention as fused_attention
from detcheck.kernels.fused import layer as fused_layer
from detcheck.kernels.fused import mlp as fused_mlp
from detcheck.kernels.fused import norm as fused_norm
from detcheck.kernels.fused import steps
from detcheck.kernels.fused.classes import FUSED
from detcheck.kernels.fused.steps import Step
from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.skipif(
    torch.bfloat16 not in packed_weight._dtypes(), reason="oneDNN packs no bfloat16 here"
)
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0,
    "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)),
    "llama with biases": lambda: T.LlamaForCausalLM(
        T.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
    ),
    "mistral, window": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=6)),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES)),
    "qwen3 experts": lambda: T.Qwen3MoeForCausalLM(
        T.Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    ),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SIZES)),
    "granite": lambda: T.GraniteForCausalLM(T.GraniteConfig(**SIZES)),
    "olmo2": lambda: T.Olmo2ForCausalLM(
        T.Olmo2Config(**{k: SIZES[k] for k in SIZES if "dim" not in k})
    ),
}
llama: Any = modeling_llama
TOKENS = torch.arange(2, 50).view(4, 12)
PADDED = torch.ones_like(TOKENS)
PADDED[1, :5] = PADDED[3, :1] = 0
Bits = list[torch.Tensor]


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, biases and norms."""
    torch.manual_seed(1)
    model = MODELS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 8)
    return model


def generated(model: Any) -> Bits:
    """Scores of a padded batch: of its prompts, and of each token that is decoded after them."""
    with torch.no_grad():
        out = model.generate(
            TOKENS, attention_mask=PADDED, max_new_tokens=6, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return [model(TOKENS[:1]).logits, *out.logits]


@contextmanager
def unfused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every module runs its own forward."""
    with monkeypatch.context() as patch:
        for part in (fused_attention, fused_layer, fused_mlp, fused_norm):
            patch.setattr(part, "is_plain", lambda x: False)
        yield


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The fused calls, by what they compute."""
    calls: Counter[str] = Counter()

    def count(holder: Any, name: str) -> None:
        stock = getattr(holder, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return stock(*args)

        monkeypatch.setattr(holder, name, counted)

    for holder, name in (
        (fused_norm, NORM),
        (fused_layer, NORM),
        (fused_mlp, "gated"),
        (fused_layer, "gated"),
        (fused_attention.FusedAttention, "compute"),
    ):
        count(holder, name)
    return calls


NORM = "normed"


def same(one: Bits, other: Bits) -> bool:
    return all(map(torch.equal, one, other))


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


@few("mode", ["batch-invariant", "fully-invariant"])
@few("name", ["llama", "llama with biases", "qwen3", "mistral", "mistral, window"])
def test_the_same_in_continuous_batching(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch, served: Counter[str]
) -> None:
    from detcheck.kernels.in_force import kernels_in_force

    model = made(name)
    prompts = [row[: 3 + 2 * index].tolist() for index, row in enumerate(TOKENS)]
    config = T.GenerationConfig(max_new_tokens=70, do_sample=False, eos_token_id=-1, pad_token_id=0)

    sizes = {"page_size": 32, "num_blocks": 16, "max_batch_tokens": 64}

    def answers() -> list[list[int]]:
        found = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=T.ContinuousBatchingConfig(**sizes),
            progress_bar=False,
        )
        return [found[key].generated_tokens for key in sorted(found)]

    with kernels_in_force(mode):
        with unfused(monkeypatch):
            expected = answers()
        paged = fused_attention._paged
        alone = []
        monkeypatch.setattr(
            fused_attention, "_paged", lambda *args: alone.append(paged(*args)) or alone[-1]
        )
        assert answers() == expected
    assert served["compute"]
    assert any(out is not None for out in alone) or "window" in name


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


def hooked(model: Any) -> Callable[[], None]:
    """A hook on a layer inside; it halves what the layer gives."""
    inner = model.model.layers[0].mlp.up_proj
    return inner.register_forward_hook(lambda module, args, out: out / 2).remove  # type: ignore[no-any-return]


def hooked_everywhere(model: Any) -> Callable[[], None]:
    """A hook on every module; it halves what the layers named `down_proj` give."""
    downs = {layer.mlp.down_proj for layer in model.model.layers}
    return nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out / 2 if module in downs else None
    ).remove


def hooked_attention(model: Any) -> Callable[[], None]:
    part = model.model.layers[1].self_attn
    return part.register_forward_hook(lambda *args: (args[-1][0] / 2, None)).remove  # type: ignore[no-any-return]


def replaced(model: Any) -> Callable[[], None]:
    """Another layer in the place of one."""
    mlp = model.model.layers[1].mlp
    own, mlp.down_proj = mlp.down_proj, nn.Linear(192, 128, bias=False)
    return lambda: setattr(mlp, "down_proj", own)


def replaced_weight(model: Any) -> Callable[[], None]:
    key = model.model.layers[1].self_attn.k_proj
    own, key.weight = key.weight, nn.Parameter(-key.weight.detach())
    return lambda: setattr(key, "weight", own)


def changed_weight(model: Any) -> Callable[[], None]:
    weight = model.model.layers[0].mlp.gate_proj.weight
    with torch.no_grad():
        weight.neg_()
    return weight.detach().neg_  # type: ignore[no-any-return]


def changed_through_data(model: Any) -> Callable[[], None]:
    weight = model.model.layers[0].self_attn.v_proj.weight
    weight.data.neg_()
    return lambda: weight.data.neg_() is None  # type: ignore[return-value]


def own_forward(model: Any) -> Callable[[], None]:
    """A forward of one instance, as accelerate gives it to modules that it moves."""
    query = model.model.layers[0].self_attn.q_proj
    query.forward = lambda x: nn.functional.linear(x, query.weight) / 2
    return lambda: delattr(query, "forward")


def other_activation(model: Any) -> Callable[[], None]:
    mlp = model.model.layers[0].mlp
    own, mlp.act_fn = mlp.act_fn, nn.ReLU()
    return lambda: setattr(mlp, "act_fn", own)


def other_norm(model: Any) -> Callable[[], None]:
    layer = model.model.layers[0]
    own, layer.input_layernorm = layer.input_layernorm, nn.LayerNorm(128)
    return lambda: setattr(layer, "input_layernorm", own)


def other_hooks(model: Any) -> Callable[[], None]:
    """A hook in a new dictionary of hooks."""
    up = model.model.layers[0].mlp.up_proj
    own, up._forward_hooks = up._forward_hooks, OrderedDict()
    up.register_forward_hook(lambda module, args, out: out / 2)
    return lambda: setattr(up, "_forward_hooks", own)


def normalised(model: Any) -> Callable[[], None]:
    """A weight that a hook computes; it is no parameter any more."""
    up = model.model.layers[0].mlp.up_proj
    own = up.weight
    nn.utils.spectral_norm(up)

    def undo() -> None:
        nn.utils.remove_spectral_norm(up)
        up.weight = own

    return undo


def other_class(model: Any) -> Callable[[], None]:
    mlp = model.model.layers[0].mlp
    own = type(mlp)
    mlp.__class__ = type("Halved", (own,), {"forward": lambda self, x: own.forward(self, x) / 2})
    return lambda: setattr(mlp, "__class__", own)


def rows_moved_through_data(model: Any) -> Callable[[], None]:
    weight = model.model.layers[0].self_attn.v_proj.weight
    weight.data.copy_(weight.detach().flip(0))
    return lambda: weight.data.copy_(weight.detach().flip(0)) is None  # type: ignore[return-value]


def patched(holder: Any, name: str, other: Any) -> Callable[[Any], Callable[[], None]]:
    """A change that puts `other(own)` in the place of a function."""

    def change(model: Any) -> Callable[[], None]:
        own = getattr(holder, name)
        setattr(holder, name, other(own))
        return lambda: setattr(holder, name, own)

    change.__name__ = name
    return change


def halved(own: Any) -> Any:
    return lambda *args: own(*args) / 2


PATCHES = [
    patched(llama.LlamaMLP, "forward", halved),
    patched(llama.LlamaRMSNorm, "forward", halved),
    patched(nn.Linear, "forward", halved),
    patched(nn.functional, "linear", halved),
    patched(llama, "apply_rotary_pos_emb", lambda own: lambda q, k, cos, sin: (q, k)),
    patched(llama, "rotate_half", halved),
    *(other_hooks, normalised, other_class, rows_moved_through_data),
]


CHANGES = [
    hooked, hooked_everywhere, hooked_attention, replaced, replaced_weight, changed_weight,
    changed_through_data, own_forward, other_activation, other_norm,
]  # fmt: skip


@few("change", PATCHES, ids=lambda change: change.__name__)
def test_what_others_put_in_place_of_a_part_is_called(
    change: Callable[[Any], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_changes_of_a_model_are_seen(change, monkeypatch)


def test_a_class_that_was_patched_between_modes_keeps_its_patch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlp = made("llama").model.layers[0].mlp
    x = torch.ones(3, 128)
    with batch_invariant():
        assert llama.LlamaMLP in FUSED._forms
    monkeypatch.setattr(llama.LlamaMLP, "forward", halved(llama.LlamaMLP.forward))
    with torch.no_grad():
        expected = mlp(x)
        with batch_invariant():
            assert llama.LlamaMLP not in FUSED._forms
            assert torch.allclose(mlp(x), expected, atol=1e-5)


def test_a_patch_inside_a_mode_stays_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = made("llama").model.layers[0].mlp
    x = torch.ones(3, 128)
    monkeypatch.setattr(llama.LlamaMLP, "forward", llama.LlamaMLP.forward)
    with torch.no_grad():
        expected = mlp(x) / 2
        with batch_invariant():
            llama.LlamaMLP.forward = halved(llama.LlamaMLP.forward)
        assert torch.equal(mlp(x), expected)  # computed by the module's own code again


def test_layers_keep_no_copies_while_packing_is_off() -> None:
    model = made("llama")
    with torch.no_grad(), batch_invariant():
        for _ in range(3):
            model(TOKENS)
        form: Any = FUSED._forms[llama.LlamaDecoderLayer]
        assert len(form._ready) == 2
        with batch_invariant(pack_weights="off"):
            assert not form._ready


def test_threads_keep_nothing_of_their_last_pass() -> None:
    model = made("llama")
    passed, leave = threading.Event(), threading.Event()

    def work() -> None:
        with torch.no_grad():
            for _ in range(3):
                model(TOKENS)
        passed.set()
        leave.wait(60)

    thread = threading.Thread(target=work)
    with batch_invariant():
        thread.start()
        assert passed.wait(60)
        assert any(last.step is not None for last in steps._lasts)
    try:
        assert all(last.step is None for last in steps._lasts)
    finally:
        leave.set()
        thread.join()


def test_positions_that_are_written_over_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is called, then the next one, with other positions in the same tensors."""
    model = made("llama")
    first, second = model.model.layers
    x = torch.randn(1, 4, 128)
    positions = model.model.rotary_emb(x, torch.arange(4)[None])
    later = model.model.rotary_emb(x, torch.arange(4)[None] + 9)
    with torch.no_grad(), batch_invariant():
        second(x, position_embeddings=later)
        with unfused(monkeypatch):
            expected = second(x, position_embeddings=later)
        first(x, position_embeddings=positions)
        for old, new in zip(positions, later, strict=True):
            old.copy_(new)
        assert torch.equal(second(x, position_embeddings=positions), expected)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_of_a_model_are_seen(
    change: Callable[[Any], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("llama")
    with torch.no_grad(), batch_invariant():
        before = model(TOKENS).logits
        undo = change(model)
        changed = model(TOKENS).logits
        with unfused(monkeypatch):
            assert torch.equal(model(TOKENS).logits, changed)
        undo()
        assert not torch.equal(changed, before)
        assert torch.equal(model(TOKENS).logits, before)


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
