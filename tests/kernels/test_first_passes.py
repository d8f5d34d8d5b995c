"""The mode says by itself when a model runs ops that no kernel covers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import nn

from detcheck.errors import UsageError
from detcheck.kernels import first_passes
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.op_watch import OpWatch

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 0,
}  # fmt: skip
IDS = torch.tensor([[1, 2, 3]])


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


class ComplexProduct(nn.Module):
    """An activation that rounds by place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.complex(x, x.sin()) * torch.complex(x.cos(), x)).real


def with_complex_product() -> nn.Module:
    model = llama()
    model.model.layers[1].mlp.act_fn = ComplexProduct()
    return model


@pytest.fixture(params=["inference", "no_grad", "grad"])
def context(request: pytest.FixtureRequest) -> Iterator[None]:
    contexts = {
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "grad": torch.enable_grad,
    }
    with contexts[request.param]():
        yield


def test_a_pass_that_a_graph_captures_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of some ops read values, which a capture forbids. The passes around it are watched."""
    model = with_complex_product()
    with batch_invariant() as mode, torch.no_grad():
        for captured in (False, True, False, False):
            monkeypatch.setattr(first_passes, "capturing", lambda now=captured: now)
            model(IDS)
            assert mode.proof().outside.get("aten::mul", 0) in (1, 2)
    assert mode.proof().outside == {"aten::mul": 2}


@pytest.mark.usefixtures("context")
def test_an_op_outside_the_overrides_is_in_the_proof() -> None:
    model = with_complex_product()
    with batch_invariant() as mode:
        for _ in range(4):
            model(IDS)
    proof = mode.proof()
    assert proof.outside == {"aten::mul": 2}  # the first two passes are watched
    assert proof.fault == "ops ran that no batch-invariant kernel covers: aten::mul"
    assert proof.self_check == "passed"


@pytest.mark.usefixtures("context")
def test_a_covered_model_has_nothing_outside() -> None:
    model = llama()
    with batch_invariant() as mode:
        model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert mode.proof().outside == {}
    assert mode.proof().fault is None


def test_what_was_found_is_remembered_for_the_next_mode() -> None:
    model = with_complex_product()
    for _ in range(2):
        with batch_invariant() as mode:
            model(IDS)
            model(IDS)
    assert mode.proof().outside == {"aten::mul": 2}


def test_every_module_is_watched_until_one_was_seen_enough() -> None:
    head, model = nn.Linear(4, 4), with_complex_product()
    with batch_invariant() as mode:
        head(torch.ones(1, 4))
        model(IDS)
        assert mode.proof().outside == {"aten::mul": 1}


def test_modules_are_called_as_before_once_a_model_was_watched() -> None:
    stock = nn.Module.__call__
    model = llama()
    with batch_invariant():
        model(IDS)
        model(IDS)
        assert nn.Module.__call__ is not stock
        model(IDS)
        assert nn.Module.__call__ is stock
        with batch_invariant():
            assert nn.Module.__call__ is not stock
        assert nn.Module.__call__ is stock
    with pytest.raises(ZeroDivisionError), batch_invariant():
        raise ZeroDivisionError
    assert nn.Module.__call__ is stock


def test_a_subset_of_families_promises_nothing_of_other_ops() -> None:
    model = with_complex_product()
    with batch_invariant("matmul") as mode:
        model(IDS)
    assert mode.proof().outside == {}


def test_a_recurrent_layer_with_dropout_is_outside() -> None:
    layer = nn.LSTM(64, 32, num_layers=2, batch_first=True, dropout=0.1)
    with torch.no_grad(), batch_invariant() as mode:
        layer(torch.randn(3, 5, 64))
    assert list(mode.proof().outside) == ["aten::mkldnn_rnn_layer", "aten::bernoulli_"]


@pytest.mark.filterwarnings("ignore")  # PyTorch says that this is deprecated
def test_a_quantised_layer_is_outside() -> None:
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(64, 32)), {nn.Linear}, dtype=torch.qint8
    )
    with torch.no_grad(), batch_invariant() as mode:
        model(torch.randn(3, 64))
    assert list(mode.proof().outside) == ["quantized::linear_dynamic"]


def test_a_pass_that_fails_ends_its_watch() -> None:
    model = llama()
    with batch_invariant():
        with pytest.raises(IndexError):
            model(torch.tensor([[999]]))
        assert torch._C._len_torch_dispatch_stack() == 0
        assert model(IDS).logits.shape == (1, 3, 64)


def test_watching_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama().bfloat16()
    with torch.inference_mode(), batch_invariant():
        watched, again, unwatched = (model(IDS).logits for _ in range(3))
    assert torch.equal(watched, unwatched)
    assert torch.equal(again, unwatched)
    monkeypatch.setattr(first_passes, "OpWatch", None)
    with torch.inference_mode(), batch_invariant():
        assert torch.equal(model(IDS).logits, unwatched)  # known, so not watched


def test_a_mode_for_a_model_checks_it_first() -> None:
    with pytest.raises(UsageError, match=r"runs aten::mul \(in model\.layers\.1\.mlp\.act_fn"):
        batch_invariant(model=with_complex_product()).__enter__()
    model = llama()
    with torch.no_grad(), batch_invariant(model=model) as mode:
        model(IDS)
    assert mode.proof().fault is None


def test_composite_ops_are_seen_as_their_parts_in_inference_mode() -> None:
    layer, x = nn.LayerNorm(8), torch.randn(2, 8)
    with torch.inference_mode(), OpWatch(layer) as watch:
        layer(x)
    assert "aten::native_layer_norm" in watch.covered
    assert not watch.outside
