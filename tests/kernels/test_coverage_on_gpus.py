"""Coverage by the rules of a GPU on a machine without one: tables are read, nothing is launched.

The models run on the CPU, in the mode, and each op is judged as if it had run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import transformers as T
from decoders import SIZES, TAKEN
from torch import nn

pytest.importorskip("triton")

from detcheck.kernels import op_watch, overrides
from detcheck.kernels.coverage import coverage
from detcheck.kernels.op_rules import OpRules
from detcheck.kernels.triton import ops

MODELS: dict[str, Callable[[], nn.Module]] = {
    **TAKEN,
    "OPT": lambda: T.OPTForCausalLM(T.OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=64)),
    "Phi": lambda: T.PhiForCausalLM(T.PhiConfig(**SIZES)),
    "NeoX": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**SIZES)),
    "Gemma 2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**SIZES, head_dim=16)),
    "Falcon": lambda: T.FalconForCausalLM(T.FalconConfig(**SIZES)),
    "Qwen3-MoE": lambda: T.Qwen3MoeForCausalLM(
        T.Qwen3MoeConfig(
            **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
        )
    ),
    "GPT-OSS": lambda: T.GptOssForCausalLM(
        T.GptOssConfig(**SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    ),
}


@pytest.fixture(autouse=True)
def judged_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "why_unavailable", lambda: None)
    monkeypatch.setattr(op_watch, "OpRules", lambda device, weights: OpRules("cuda", weights))


@pytest.mark.sweep
@pytest.mark.parametrize("name", MODELS)
def test_common_models_are_covered_on_a_gpu(name: str) -> None:
    assert coverage(MODELS[name]().eval()).uncovered == ()


ROUND = ("native_layer_norm", "topk", "cumsum", "mean.dim", "_softmax", "logsumexp",
         "linalg_vector_norm", "prod.dim_int")  # fmt: skip


@pytest.mark.parametrize("op", ROUND)
def test_no_op_is_covered_on_a_gpu_by_a_kernel_of_the_cpu(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: without its line in the table for GPUs, an op of the table for CPUs is none."""
    names = partial(overrides.op_names, device="cuda")
    family = next(family for family, table in ops.KERNELS.items() if op in table)
    assert f"aten::{op}" in names(family)
    monkeypatch.delitem(ops.KERNELS[family], op)
    assert f"aten::{op}" not in names(family)


def test_opt_is_refused_without_running_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts positions with them."""
    monkeypatch.delitem(ops.KERNELS["reduce"], "cumsum")
    (found,) = coverage(MODELS["OPT"]().eval()).uncovered
    assert found.op == "aten::cumsum"
