"""Which models the whole batch-invariant mode takes, and which op it refuses the others for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as T
from torch import nn

from detcheck.errors import UsageError
from detcheck.kernels.coverage import Uncovered, require_coverage, uncovered

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 0,
}  # fmt: skip
TAKEN: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)),
    "Qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES, head_dim=16)),
    "Phi-3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**SIZES)),
    "Gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SIZES, head_dim=16)),
    "GPT-2": lambda: T.GPT2LMHeadModel(
        T.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_decoders_of_known_ops_are_taken(name: str) -> None:
    assert uncovered(TAKEN[name]().eval()) == ()


def test_expert_routing_is_refused_by_name() -> None:
    model = T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=4)).eval()
    with pytest.raises(UsageError, match=r"Mix runs aten::topk \(in model\.layers\.0\.mlp\.gate\)"):
        require_coverage(model, "Mix")


@pytest.mark.filterwarnings("ignore")
def test_a_state_space_model_is_refused_by_name() -> None:
    config = T.MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, pad_token_id=0)
    with pytest.raises(UsageError, match="runs aten::convolution"):
        require_coverage(T.MambaForCausalLM(config).eval(), "Mamba")


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


class OwnAttention(nn.Module):
    """Attention that goes past transformers' interface."""

    def forward(self, hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        x = hidden_states[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x)[:, 0], None


def test_attention_past_the_interface_is_refused() -> None:
    model = TAKEN["Llama"]().eval()
    model.model.layers[0].self_attn = OwnAttention()
    (found,) = uncovered(model)
    assert "scaled_dot_product" in found.op
    assert found.module == "model.layers.0.self_attn"
