"""Quantised weights: a scheme that dequantises them is held, one with its own kernel is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from detcheck.errors import UsageError
from detcheck.kernels.coverage import require_coverage
from detcheck.kernels.mode import batch_invariant

SIZES = (1, 2, 3, 4, 8, 17)
"""Batch sizes at which stock float32 products of one token change their bits."""


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=1536, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Int8Linear(torch.nn.Module):
    """A layer whose weight is kept in int8 with one scale a row."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (layer.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


@pytest.fixture
def own_kernel() -> Iterator[None]:
    """A product of int8 weights with a kernel of its own, as quantisation libraries bring them."""
    library = torch.library.Library("planted_int8", "DEF")
    library.define("mm(Tensor x, Tensor weight, Tensor scale) -> Tensor")
    library.impl("mm", lambda x, w, s: x @ (w.to(x.dtype) * s).T, "CompositeExplicitAutograd")
    yield
    library._destroy()


class OwnKernel(Int8Linear):
    """The same layer, computed by that kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.planted_int8.mm(x, self.weight, self.scale)


def quantised(kind: type[Int8Linear]) -> LlamaForCausalLM:
    model = llama()
    for layer in model.model.layers:
        layer.mlp.down_proj = kind(layer.mlp.down_proj)
        layer.self_attn.q_proj = kind(layer.self_attn.q_proj)
    return model


def differing(model: Any) -> int:
    """Batch sizes at which the first row's scores are not those that it has alone."""
    ids = torch.arange(2, 2 + max(SIZES))[:, None]
    with torch.inference_mode():
        alone = model(ids[:1]).logits[0]
        return sum(not torch.equal(model(ids[:size]).logits[0], alone) for size in SIZES)


def test_dequantised_weights_are_covered_and_held() -> None:
    model = quantised(Int8Linear)
    require_coverage(model, "quantised", 32)
    with batch_invariant():
        assert differing(model) == 0


def test_stock_products_of_them_differ() -> None:
    """The twin."""
    assert differing(quantised(Int8Linear)) > 0


def test_a_kernel_of_its_own_is_refused_by_name(own_kernel: None) -> None:
    with pytest.raises(UsageError, match="runs planted_int8::mm") as caught:
        require_coverage(quantised(OwnKernel), "quantised", 32)
    assert "q_proj" in str(caught.value)
    assert 'use `kernels="stock"`' in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "scheme", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"]
)
def test_weight_only_schemes_of_torchao_are_held(scheme: str) -> None:
    """Skipped without torchao: `make test-quantised` installs it beside the environment."""
    torchao = pytest.importorskip("torchao.quantization")
    model = llama()
    torchao.quantize_(model, getattr(torchao, scheme)())
    assert type(model.model.layers[0].mlp.down_proj.weight) is not torch.nn.Parameter
    require_coverage(model, "quantised", 32)
    assert differing(model) > 0
    with batch_invariant():
        assert differing(model) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["qint8", "qfloat8"])
def test_weights_of_quanto_are_held(weights: str) -> None:
    """Skipped without optimum-quanto, as above."""
    quanto = pytest.importorskip("optimum.quanto")
    model = llama()
    quanto.quantize(model, weights=getattr(quanto, weights))
    quanto.freeze(model)
    assert isinstance(model.model.layers[0].mlp.down_proj, quanto.QLinear)
    require_coverage(model, "quantised", 32)
    assert differing(model) > 0
    with batch_invariant():
        assert differing(model) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("bits", "op"), [("load_in_8bit", "int8_vectorwise_quant"), ("load_in_4bit", "gemv_4bit")]
)
def test_kernels_of_bitsandbytes_are_refused_by_name(bits: str, op: str, tmp_path: Path) -> None:
    """Skipped without bitsandbytes, as above; its products on a CPU do depend on the batch."""
    pytest.importorskip("bitsandbytes")
    llama().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**{bits: True}),
        device_map="cpu",
        dtype=torch.float32,
    )
    with pytest.raises(UsageError, match=f"runs bitsandbytes::{op}"):
        require_coverage(model, "quantised", 32)
    assert differing(model) > 0
