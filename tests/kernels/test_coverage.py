"""Which models the whole batch-invariant mode takes, and which op it refuses the others for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from decoders import SIZES, TAKEN
from sweeps import few
from torch import nn
from torch.nn import functional as F

from detcheck.errors import ModelError, UsageError
from detcheck.kernels import op_rules
from detcheck.kernels.coverage import (
    coverage,
    level_held,
    refusal,
    require_coverage,
    require_level,
    uncovered,
)
from detcheck.kernels.mode import batch_invariant, whole_mode_is_on
from detcheck.kernels.op_rules import OpRules
from detcheck.kernels.op_watch import Uncovered
from detcheck.kernels.settings import FAMILIES
from detcheck.kernels.short_runs import alone, beside_longer, chunks_agree, decoding_agrees
from detcheck.models.tiny import config_of, shrunk, tiny_model


@few("name", TAKEN, every=4)
def test_decoders_of_known_ops_are_taken(name: str) -> None:
    assert uncovered(TAKEN[name]().eval()) == ()


def test_ops_are_named_with_what_covers_them() -> None:
    model = T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=4)).eval()
    found = {one.op: one for one in coverage(model).covered}
    assert found["transformers::sdpa"].by == "the attention kernels"
    assert found["transformers::sdpa"].module == "model.layers.0.self_attn"
    assert found["aten::topk"].by == "the reduce kernels"
    assert found["aten::_grouped_mm"].by == "the matmul kernels"
    assert found["aten::histc"].by == "gives whole numbers"
    assert found["aten::mean"].calls > 0


class AddsTwice(nn.Module):
    """Adds two rows to one, in the order of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.zeros(x.shape[1], dtype=torch.long)
        return x.index_add_(1, index, x.clone())


class AddsOnce(nn.Module):
    """Adds each row to another, as the loops of experts do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_add_(1, torch.arange(x.shape[1]), x.clone())


def test_rows_that_are_added_once_are_covered() -> None:
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].post_attention_layernorm = AddsOnce()
    found = {one.op: one for one in coverage(model).covered}
    assert found["aten::index_add_"].by == "adds once to each row"


def test_rows_that_are_added_up_are_refused() -> None:
    """The twin."""
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].post_attention_layernorm = AddsTwice()
    found = uncovered(model)
    assert found == (Uncovered("aten::index_add_", "model.layers.1.post_attention_layernorm"),)


class KnowsItsLength(nn.Module):
    """Adds the number of tokens of the forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.shape[1]


def test_the_level_is_the_one_that_was_held() -> None:
    window = T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=4)).eval()
    assert level_held(window) == "fully-invariant"
    window.model.layers[1].post_attention_layernorm = KnowsItsLength()
    assert level_held(window) == "batch-invariant"


def test_a_window_of_one_is_refused_by_name() -> None:
    model = T.MixtralForCausalLM(T.MixtralConfig(**SIZES, sliding_window=1)).eval()
    with pytest.raises(UsageError, match="sliding window of 1"):
        require_coverage(model, "One")


def test_a_model_that_fails_without_our_kernels_too_is_said_to() -> None:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 9}
    model = T.MixtralForCausalLM(T.MixtralConfig(**SIZES, **sizes)).eval()
    with pytest.raises(ModelError, match=r"with stock kernels too \(RuntimeError: selected index"):
        require_coverage(model, "Mixtral")


def test_a_model_that_fails_with_our_kernels_alone_may_run_with_stock() -> None:
    """The twin."""

    def fail(*_: object) -> None:
        if whole_mode_is_on():
            raise RuntimeError("planted fault")

    model = TAKEN["Llama"]().eval()
    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(
        UsageError, match=r"not known \(RuntimeError: planted fault\): use `kernels="
    ):
        require_coverage(model, "Llama")


@pytest.mark.parametrize("vocab_size", [2, 8, 14])
def test_a_small_vocabulary_has_all_tokens_of_the_short_runs(vocab_size: int) -> None:
    model = T.LlamaForCausalLM(T.LlamaConfig(**SIZES | {"vocab_size": vocab_size})).eval()
    assert require_coverage(model, "Small").covered


@pytest.mark.parametrize("given", ["gpt2", nn.Linear(2, 2)])
def test_only_models_of_transformers_are_checked(given: Any) -> None:
    with (
        pytest.raises(UsageError, match="`model` must be a causal language model of transformers"),
        batch_invariant(model=given),
    ):
        pass


def test_a_classifier_gives_scores_for_a_row_and_not_for_its_tokens() -> None:
    """Without padding and with it: none of them is left out of the comparison."""
    model = T.LlamaForSequenceClassification(T.LlamaConfig(**SIZES)).eval()
    assert alone(model).numel() == 2 * model.config.num_labels
    assert beside_longer(model).numel() == 2 * model.config.num_labels


class Limited(nn.Module):
    """Experts that take a limited number of a batch's tokens, in their order, and drop the rest."""

    def __init__(self, stock: Any, capacity: int):
        super().__init__()
        self.stock, self.capacity = stock, capacity
        self.router = nn.Linear(64, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = F.one_hot(self.router(x).argmax(-1).flatten(), 4)
        place = (chosen.cumsum(0) * chosen).sum(-1).view(x.shape[:-1])
        out: torch.Tensor = torch.where(place[..., None] <= self.capacity, self.stock(x), 0.0)
        return out


@pytest.mark.parametrize(
    "capacity", [40, pytest.param(10, marks=pytest.mark.sweep), pytest.param(4000)]
)
def test_experts_of_limited_capacity_are_refused(capacity: int) -> None:
    """The twin: a capacity that no batch here reaches."""
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].mlp = Limited(model.model.layers[1].mlp, capacity)
    found = refusal(coverage(model), "Limited")
    assert (found is None) is (capacity == 4000)
    assert found is None or "Limited computes with the other rows of its batch" in found


def test_chunks_of_one_are_refused_by_name() -> None:
    config = T.Llama4TextConfig(
        **SIZES, attention_chunk_size=1, head_dim=16, intermediate_size_mlp=96,
        layer_types=["chunked_attention", "full_attention"], moe_layers=[],
    )  # fmt: skip
    with pytest.raises(UsageError, match="chunks of 1"):
        require_coverage(T.Llama4ForCausalLM(config).eval(), "One")


@pytest.mark.filterwarnings("ignore")
def test_a_scan_in_chunks_is_held_for_one_length_only() -> None:
    config = T.Mamba2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=1, pad_token_id=0, num_heads=8, head_dim=16
    )
    model = T.Mamba2ForCausalLM(config).eval()
    with pytest.raises(UsageError, match="Mamba computes with its padding, so it is held for req"):
        require_coverage(model, "Mamba")
    assert require_coverage(model, "Mamba", one_length=True).one_length


@pytest.mark.filterwarnings("ignore")
def test_a_scan_token_by_token_is_held_with_padding() -> None:
    config = T.MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, pad_token_id=0)
    found = require_coverage(T.MambaForCausalLM(config).eval(), "Mamba")
    assert not found.one_length
    assert found.families >= {"matmul", "norm", "pointwise"}
    assert "attention" not in found.families
    assert "attention" in coverage(TAKEN["Llama"]().eval()).families


@pytest.mark.filterwarnings("ignore")
def test_another_formula_in_decoding_is_not_fully_invariant() -> None:
    config = T.Mamba2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=1, pad_token_id=0, num_heads=8, head_dim=16
    )
    with pytest.raises(UsageError, match="Mamba gives other bits when it decodes, or computes"):
        require_level(T.Mamba2ForCausalLM(config).eval(), "Mamba")
    require_level(TAKEN["Llama"]().eval(), "Llama")


@pytest.mark.filterwarnings("ignore")
def test_a_state_that_a_chunk_starts_anew_is_not_fully_invariant() -> None:
    """In float32 single tokens agree; the twin's chunks do as well."""
    models = [tiny_model(shrunk(config_of(name))) for name in ("mamba", "lfm2")]
    with batch_invariant(FAMILIES), torch.no_grad():
        assert [decoding_agrees(model) for model in models] == [True, True]
        assert [chunks_agree(model) for model in models] == [False, True]
    assert [level_held(model) for model in models] == ["batch-invariant", "fully-invariant"]


class Packed(nn.Module):
    """A linear layer with packed weights, as quantised models have them."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.detcheck_test.packed_linear(x, self.layer.weight)


@pytest.fixture(scope="module")
def packed_linear() -> torch.library.Library:
    library = torch.library.Library("detcheck_test", "DEF")
    library.define("packed_linear(Tensor x, Tensor weight) -> Tensor")
    library.impl("packed_linear", lambda x, weight: x @ weight.T, "CPU")
    return library


def test_a_product_of_another_library_is_refused_by_name(packed_linear: object) -> None:
    model = TAKEN["Llama"]().eval()
    model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)
    assert uncovered(model) == (
        Uncovered("detcheck_test::packed_linear", "model.layers.1.mlp.down_proj"),
    )


imported = nn.functional.scaled_dot_product_attention


class OwnAttention(nn.Module):
    """Attention that goes past transformers' interface and PyTorch's module of functions."""

    def forward(self, hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        x = hidden_states[:, None]
        return imported(x, x, x)[:, 0], None


def test_attention_past_the_interface_is_refused() -> None:
    model = TAKEN["Llama"]().eval()
    model.model.layers[0].self_attn = OwnAttention()
    (found,) = uncovered(model)
    assert "scaled_dot_product" in found.op
    assert found.module == "model.layers.0.self_attn"


def test_attention_written_out_is_taken() -> None:
    """Products and a softmax over keys that include the padding, whose sums run in order."""
    config = T.GPTJConfig(
        vocab_size=64, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, bos_token_id=0, eos_token_id=1
    )
    model = T.GPTJForCausalLM(config).eval()
    require_coverage(model, "J")
    assert level_held(model) == "fully-invariant"
    found = {one.op: one for one in coverage(model).covered}
    assert found["aten::bmm"].by == "the matmul kernels"
    assert found["aten::bmm"].module == "transformer.h.0.attn"


def test_products_past_the_interface_run_in_order_on_a_gpu_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not larger ones: their kernel sums blocks, which move with the padding."""

    def reason(device: str, size: int) -> str | None:
        x = torch.empty(2, 3, size, device="meta")
        call = (x, torch.empty(2, size, size, device="meta"))
        return OpRules(device, ()).reason(torch.ops.aten.bmm.default, call, {}, x)

    monkeypatch.setattr(
        op_rules, "op_names", lambda family, device: ("aten::bmm",) if family == "matmul" else ()
    )
    assert reason("cpu", 64) == reason("cuda", 64) == "the matmul kernels"
    assert reason("cuda", 2048) is None
    monkeypatch.setattr(op_rules, "op_names", lambda family, device: ())
    assert reason("cuda", 64) is None


def test_a_batch_along_the_columns_is_held_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU only if a parameter is on the left, by which the kernel sees where the batch is."""

    def reason(device: str, weight: torch.Tensor) -> str | None:
        call = (weight, torch.ones(8, 3))
        return OpRules(device, (weight,)).reason(torch.ops.aten.mm.default, call, {}, call[1])

    monkeypatch.setattr(op_rules, "op_names", lambda family, device: ("aten::mm",))
    parameter = nn.Parameter(torch.ones(4, 8))
    assert reason("cpu", parameter) is not None
    assert reason("cpu", parameter.data) is not None
    assert reason("cuda", parameter) is not None
    assert reason("cuda", parameter.data) is None
