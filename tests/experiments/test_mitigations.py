"""The cures beside each other: each does what its name says, and what varies is counted."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from detcheck.completion import Completion, TopTwo
from detcheck.models import LoadedModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="script")
def _script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("mitigations")


@pytest.fixture(name="cures")
def _cures(script: ModuleType) -> ModuleType:
    return importlib.import_module("cures")


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).bfloat16().eval()


@torch.no_grad()
def test_16_bit_weights_give_the_bits_of_a_float32_model(cures: ModuleType) -> None:
    ids = torch.arange(12)[None]
    model = llama()
    half = model(ids).logits
    loaded = LoadedModel("tiny", llama(), None, torch.bfloat16, torch.device("cpu"))
    kept = cures.computing_in_float32(loaded)
    assert kept.dtype == kept.model.dtype == torch.float32
    layer = kept.model.model.layers[0].mlp.up_proj
    assert layer.kept.dtype == torch.bfloat16
    logits = kept.model(ids).logits
    assert torch.equal(logits, model.float()(ids).logits)
    assert not torch.equal(logits, half.float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("stock", 3),
        ("one request at a time", 1),
        ("a fixed batch of 16", 8),
        ("the same, always in row 0", 8),
    ],
)
def test_a_cure_forms_the_batches_that_its_name_says(
    script: ModuleType, cures: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    monkeypatch.setattr(cures.FixedBatch, "rows", 8)
    options = argparse.Namespace(
        model=None, device="cpu", prompt="Hi!", batch_sizes="3", completions=6,
        slow_completions=6, max_new_tokens=2,
    )  # fmt: skip
    (cure,) = (cure for cure in cures.CURES if cure.name == name)
    bench = script.Bench(cure, script.load(cure, options), options)
    answers = bench.answers()
    bench.engine.close()
    assert len(answers) == 6
    first = answers[0].observed_batch
    assert first is not None
    assert first.rows_max == rows


def completion(*logprobs: float, tokens: tuple[int, ...] = (1, 2, 3)) -> Completion:
    return Completion("x", "length", tokens, top_two=TopTwo(None, (1.0,) * 3, logprobs))


def test_the_largest_change_is_taken_before_the_answers_diverge(script: ModuleType) -> None:
    a = completion(-1.0, -1.0, -1.0)
    assert script.largest_change(a, completion(-1.0, -1.5, -9.0)) == 8.0
    assert script.largest_change(a, completion(-1.0, -1.5, -9.0, tokens=(1, 2, 4))) == 0.5
    assert script.largest_change(a, completion(-9.0, -9.0, -9.0, tokens=(4, 2, 3))) == 0.0


def test_the_deterministic_switch_is_put_back(cures: ModuleType) -> None:
    with cures.deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_table_has_a_row_for_each_cure(script: ModuleType) -> None:
    options = argparse.Namespace(
        prompt="Why?",
        completions=9,
        slow_completions=3,
        max_new_tokens=8,
        batch_sizes="1,4",
        rate_sizes="1,4",
    )
    row = script.Row("stock", 9, 2, 0.5, 0.25, 10_000_000, {1: 20.0}, {1: 1.0})
    line = "| stock | 2 of 9 | 50% | 0.25 | 10 | 1.00 | – |"
    assert line in script.table([row], options).splitlines()
    assert line not in script.table([replace(row, distinct=3)], options).splitlines()
    assert "stock: 2 distinct" in script.figure([row])
