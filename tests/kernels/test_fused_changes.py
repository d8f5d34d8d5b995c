"""Fused modules see changes of a model: hooks, children, weights, classes and positions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_models import TOKENS, llama, made, unfused
from sweeps import few
from torch import nn

from detcheck.kernels.cpu import packed_weight
from detcheck.kernels.fused import layer as fused_layer
from detcheck.kernels.fused import steps
from detcheck.kernels.fused.classes import FUSED
from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.skipif(
    torch.bfloat16 not in packed_weight._dtypes(), reason="oneDNN packs no bfloat16 here"
)


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


def shown(change: Callable[[Any], Callable[[], None]]) -> str:
    return change.__name__


@pytest.mark.parametrize(
    "change",
    [*CHANGES, *(pytest.param(each, marks=pytest.mark.sweep) for each in PATCHES)],
    ids=shown,
)
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


@few("change", [hooked, replaced, other_activation, changed_through_data], ids=shown)
def test_the_same_check_catches_layers_that_are_never_looked_at_again(
    change: Callable[[Any], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("llama")
    with torch.no_grad(), batch_invariant():
        for _ in range(3):
            before = model(TOKENS).logits
        monkeypatch.setattr(fused_layer.Ready, "holds", lambda self, settings: True)
        undo = change(model)
        stale = model(TOKENS).logits
        with unfused(monkeypatch):
            assert not torch.equal(model(TOKENS).logits, stale)
        undo()
        assert (change is other_activation) or torch.equal(stale, before)


def test_a_checksum_of_columns_misses_rows_that_change_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(12, 64)
    moved = weight.flip(0).contiguous()
    assert packed_weight.checksum(weight) != packed_weight.checksum(moved)
    monkeypatch.setattr(packed_weight, "CHECKSUM_WORDS", 64 // 2)  # the words of a row
    assert packed_weight.checksum(weight) == packed_weight.checksum(moved)
