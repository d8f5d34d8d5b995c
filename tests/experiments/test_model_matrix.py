"""A sample of every kind of model: held, bit for bit, or refused with a sentence."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch

from detcheck.errors import ModelError
from detcheck.kernels.mode import batch_invariant, whole_mode_is_on
from detcheck.models.tiny import architectures, config_of, shrunk, tiny_model

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "models"
SAMPLE = {
    "full attention": "llama",
    "a sliding window": "mistral",
    "two kinds of windows": "gemma3_text",
    "soft caps": "gemma2",
    "sinks and experts": "gpt_oss",
    "experts": "qwen3_moe",
    "groups of experts and latent attention": "deepseek_v3",
    "a window and experts": "mixtral",
    "experts of many sizes": "glm4_moe",
    "attention written out": "gptj",
    "an indexer of keys": "deepseek_v32",
    "biases by distance": "bloom",
    "one key-value head, written out": "falcon",
    "complex rotations": "llama4_text",
    "experts added by index": "jetmoe",
    "layers run in cycles": "hrm_text",
    "a bias of positions": "inkling_text",
    "masks that are biases": "doge",
    "PyTorch's attention": "inkling2_text",
    "a scan token by token": "jamba",
    "positions from behind the padding token": "roberta",
}
ONE_LENGTH = {
    "learned positions": "bart",
    "a recurrence beside a window": "recurrent_gemma",
    "a scan in chunks": "mamba2",
    "a gated delta rule": "qwen3_5",
    "linear attention in blocks": "minimax",
}
REFUSED = {
    "rwkv": "computes with the other rows of its batch",
}

CONTINUOUS = {"continuous", "chunking"}
BATCHED = {
    "llama": CONTINUOUS | {"prefix-cache"},
    "qwen3_moe": CONTINUOUS | {"prefix-cache"},
    "mistral": CONTINUOUS,
    "gemma3_text": CONTINUOUS,
    "gpt_oss": CONTINUOUS,
}
"""Architectures that transformers batches continuously, and the relations they hold there."""

PATIENCE_S = 600
"""A busy machine may take long for one architecture."""


@pytest.fixture(name="matrix")
def _matrix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("model_matrix")


@pytest.mark.sweep
@pytest.mark.parametrize("kind", SAMPLE)
def test_every_kind_is_held_and_its_control_is_alive(matrix: ModuleType, kind: str) -> None:
    row = matrix.measure(SAMPLE[kind], PATIENCE_S)
    scans = SAMPLE[kind] == "jamba"  # decodes to other bits in bfloat16
    level = "batch-invariant" if scans else "fully-invariant"
    assert (row.outcome, row.level, row.reason) == ("held", level, None)
    assert row.differ["batch-invariant"] == 0
    assert row.differ["stock"] > 0
    assert row.rows == 44
    relations = {name: relation.outcome for name, relation in row.relations.items()}
    assert set(relations.values()) <= {"held", "engine cannot"}, row.relations
    own = {"prefill-decode"} if level == "fully-invariant" else set()
    assert {name for name in relations if relations[name] == "held"} >= own | BATCHED.get(
        SAMPLE[kind], set()
    )
    assert all(each.differ["stock"] for each in row.relations.values() if each.differ)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_the_level_is_that_of_all_dtypes(matrix: ModuleType) -> None:
    """The lowest one, in any order."""
    held, less = (tiny_model(shrunk(config_of(name))) for name in ("llama", "mamba"))
    assert matrix.lowest_level([held]) == "fully-invariant"
    assert matrix.lowest_level([held, less]) == "batch-invariant"
    assert matrix.lowest_level([less, held]) == "batch-invariant"


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ONE_LENGTH)
def test_kinds_that_are_held_for_one_length(matrix: ModuleType, kind: str) -> None:
    row = matrix.measure(ONE_LENGTH[kind], PATIENCE_S)
    assert (row.outcome, row.reason) == ("held, one length", None)
    assert row.differ["batch-invariant"] == 0
    assert row.differ["stock"] > 0
    assert row.rows == 88


@pytest.mark.sweep
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_with_a_sentence(matrix: ModuleType, name: str) -> None:
    row = matrix.measure(name, PATIENCE_S)
    assert (row.outcome, row.differ) == ("refused", {})
    assert REFUSED[name] in row.reason


class SeesItsNeighbours(torch.nn.Module):
    """Adds the mean of all rows to each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(0, keepdim=True)


def test_a_model_whose_rows_depend_on_each_other_is_found(matrix: ModuleType) -> None:
    """The twin: a covered model with a planted fault, which no kernel can mend."""
    model = tiny_model(shrunk(config_of("llama")))
    with batch_invariant(), torch.no_grad():
        assert all(matrix.rows_equal(model))
        model.model.layers[1].post_attention_layernorm = SeesItsNeighbours()
        equal = matrix.rows_equal(model)
    again, *batches = matrix.BATCHES
    assert len(again) == 1, "the same call again"
    assert equal == [True, *[False] * sum(map(len, batches))] * 2


@pytest.mark.sweep
def test_padding_that_matters_is_found(matrix: ModuleType) -> None:
    """The twin of one length: padded batches of the same model do differ."""
    model = tiny_model(shrunk(config_of("bart")))
    with batch_invariant(), torch.no_grad():
        assert all(matrix.rows_equal(model, (14, 14, 14, 14)))
        assert not all(matrix.rows_equal(model))


class Broken(torch.nn.Module):
    """Sizes that do not fit each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :3]


def test_a_tiny_model_that_does_not_run_is_not_called_refused(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.nn.Module:
        model = tiny_model(shrunk(config_of("llama")))
        model.model.layers[1].post_attention_layernorm = Broken()
        return model

    monkeypatch.setattr(matrix, "tiny_model", broken)
    row = matrix.measure("llama")
    assert row.outcome == "not built"
    assert "does not run with stock kernels (RuntimeError" in row.reason


@pytest.mark.sweep
def test_a_dtype_in_which_the_model_s_own_code_fails_is_named(matrix: ModuleType) -> None:
    row = matrix.measure("xlstm", PATIENCE_S)
    assert (row.outcome, row.rows) == ("held, one length", 44)
    assert row.reason == "It does not run in bfloat16 with stock kernels either."


def test_a_dtype_in_which_a_model_fails_is_left_out(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = tiny_model

    def broken(config: object, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        model = stock(config, dtype)
        if dtype == torch.bfloat16 or everywhere:
            model.model.layers[1].post_attention_layernorm = Broken()
        return model

    monkeypatch.setattr(matrix, "tiny_model", broken)
    everywhere = False
    assert list(matrix.models_that_run(shrunk(config_of("llama")))) == ["float32"]
    everywhere = True
    with pytest.raises(ModelError, match="does not generate with stock kernels"):
        matrix.models_that_run(shrunk(config_of("llama")))


def test_an_architecture_that_takes_too_long_is_named(matrix: ModuleType) -> None:
    with pytest.raises(matrix.TooLongError, match="more than 1 s"), matrix.limited(1):
        time.sleep(30)


class SlowInTheMode(torch.nn.Module):
    """Takes 5 ms more while batch-invariant kernels are in force."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005 * whole_mode_is_on())
        return x


@pytest.mark.sweep
def test_the_cost_is_a_ratio_for_each_dtype_and_sees_a_slow_kernel(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = importlib.import_module("matrix_costs")
    monkeypatch.setattr(timed, "ROUNDS", 3)
    models = matrix.models_that_run(shrunk(config_of("llama")))
    usual = timed.costs(models, (3, 4))
    assert set(usual) == {"float32", "bfloat16"}
    assert all(ratio > 0.2 for ratio in usual.values())
    for model in models.values():
        model.model.norm = torch.nn.Sequential(model.model.norm, SlowInTheMode())
    slowed = timed.costs(models, (3, 4))
    assert all(slowed[name] > usual[name] + 0.5 for name in usual)


def test_what_was_measured_before_is_kept_and_only_its_cost_is_added(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a refused architecture no cost is asked for, and a known cost is not timed again."""
    before = [
        matrix.Row("llama", "held", level="fully-invariant", rows=44, differ={"stock": 24}),
        matrix.Row("qwen3", "held", level="fully-invariant", cost={"float32": 1.5}),
        matrix.Row("rwkv", "refused", reason="it cannot"),
    ]
    monkeypatch.setattr(matrix, "table", lambda rows: "")
    matrix.write(before, tmp_path)
    names = ",".join(row.architecture for row in before)
    script = ["model_matrix.py", "--out", str(tmp_path), "--only", names]
    monkeypatch.setattr(matrix, "models_that_run", lambda config: {})
    monkeypatch.setattr(matrix, "costs", lambda models, lengths: {"float32": 1.25})
    monkeypatch.setattr("sys.argv", [*script, "--resume"])
    matrix.main()
    after = matrix.measured(tmp_path)
    assert [row.cost for row in after.values()] == [{"float32": 1.25}, {"float32": 1.5}, {}]
    assert (after["llama"].rows, after["llama"].differ) == (44, {"stock": 24})
    monkeypatch.setattr("sys.argv", [*script, "--costs"])
    matrix.main()
    assert matrix.measured(tmp_path)["qwen3"].cost == {"float32": 1.25}
    assert "cost_environment" in matrix.stored(tmp_path)


def test_the_committed_table_is_made_from_its_figures(matrix: ModuleType) -> None:
    stored = json.loads((COMMITTED / "results.json").read_text(encoding="utf-8"))
    rows = msgspec.convert(stored["rows"], list[matrix.Row])
    committed = (COMMITTED / "table.md").read_text(encoding="utf-8")
    assert matrix.table(rows) == committed
    rows[0].outcome = "variant"
    assert matrix.table(rows) != committed


def test_the_committed_table_is_of_all_architectures_and_none_is_variant() -> None:
    stored = json.loads((COMMITTED / "results.json").read_text(encoding="utf-8"))
    outcomes = {row["architecture"]: row["outcome"] for row in stored["rows"]}
    assert set(architectures()) == set(outcomes)
    assert set(outcomes.values()) <= {"held", "held, one length", "refused", "not built"}
