"""The relations of the model matrix: each one's twin, and the outcome of errors."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sweeps import few

from detcheck.errors import MeasurementError, UsageError
from detcheck.models import LoadedModel
from detcheck.models.tiny import config_of, shrunk, tiny_model

ROOT = Path(__file__).parents[2]
CHUNK = 4
"""Tokens of a chunk in the matrix."""


@pytest.fixture(name="relations")
def _relations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("matrix_relations")


@pytest.fixture(name="llama", scope="module")
def _llama() -> Any:
    return tiny_model(shrunk(config_of("llama")))


class SeesTheLoad(torch.nn.Module):
    """Adds a trace to a single row of more tokens than `least`, too small to look implausible."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = len(x) == 1 and self.least < x.shape[1] < 100
        return x + 1e-4 if seen else x


FAULTS = {"prefill_decode": 1, "chunking": CHUNK, "batching": 20, "prefix_cache": 20}
"""Each relation, and a size of pass that its two sides do not share."""


@few("name", FAULTS)
def test_a_model_that_sees_its_load_is_found(relations: ModuleType, name: str) -> None:
    """The twin of each relation: `detcheck coverage` misses the fault, and no kernel mends it."""
    ask, model = getattr(relations, name), tiny_model(shrunk(config_of("llama")))
    right = ask({"float32": model})
    assert right.outcome == "held"
    model.model.norm = torch.nn.Sequential(model.model.norm, SeesTheLoad(FAULTS[name]))
    found = ask({"float32": model})
    assert (found.outcome, found.reason) == ("variant", None)
    assert all(found.differ.values())
    assert found.answers == right.answers


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("gptj", "does not read the paged cache"),
        ("mamba", "layers of kind linear_attention have no paged cache"),
        ("deepseek_v3", "its latent attention"),
    ],
)
def test_what_continuous_batching_cannot_run_has_the_engine_s_sentence(
    relations: ModuleType, architecture: str, reason: str
) -> None:
    found = relations.batching({"float32": tiny_model(shrunk(config_of(architecture)))})
    assert (found.outcome, found.differ) == ("engine cannot", {})
    assert reason in found.reason
    assert 'use `engine="static"`' in found.reason


@pytest.mark.sweep
def test_what_needs_one_length_is_refused_in_continuous_batching(relations: ModuleType) -> None:
    found = relations.batching({"float32": tiny_model(shrunk(config_of("cpmant")))})
    assert found.outcome == "refused"
    assert "held for requests of one length only" in found.reason


@pytest.mark.parametrize(
    ("error", "fails_under", "outcome"),
    [
        (UsageError("No."), "stock", "engine cannot"),
        (UsageError("No."), "batch-invariant", "refused"),
        (MeasurementError("No."), "stock", "traceback"),
        (RuntimeError("No."), "batch-invariant", "traceback"),
        (None, "", "held"),
    ],
)
def test_every_error_becomes_an_outcome(
    relations: ModuleType, llama: Any, error: Exception | None, fails_under: str, outcome: str
) -> None:
    def differences(_: LoadedModel, kernels: str) -> list[bool]:
        if kernels == fails_under and error is not None:
            raise error
        return [kernels == "stock", False]

    found = relations.compared({"float32": llama}, "batch-invariant", differences)
    assert found.outcome == outcome
    assert (found.reason or "None").endswith("No." if error else "None")
    assert found.differ == ({} if error else {"stock": 1, "batch-invariant": 0})


def test_answers_that_differ_under_invariant_kernels_are_variant(
    relations: ModuleType, llama: Any
) -> None:
    found = relations.compared({"float32": llama}, "batch-invariant", lambda *_: [False, True])
    assert (found.outcome, found.differ["batch-invariant"]) == ("variant", 1)


def test_a_batch_that_did_not_form_is_no_measurement(relations: ModuleType, llama: Any) -> None:
    engine = relations.opened(relations.as_loaded(llama, "float32"), "stock", relations.LENGTHS)
    with pytest.raises(MeasurementError, match="Batches of 2 were asked for, 1 were seen"):
        relations.answers(engine, "stock", [(0, 0), (1, 40)])
    engine.close()


def test_a_limit_is_an_outcome_and_no_handler_of_errors_takes_it(
    relations: ModuleType, llama: Any
) -> None:
    def slow(*_: object) -> list[bool]:
        time.sleep(30)
        return []

    matrix = importlib.import_module("model_matrix")
    found = matrix.within(1, lambda models: relations.compared(models, "stock", slow), {"f": llama})
    assert (found.outcome, found.reason) == ("too long", "It took more than 1 s.")


def test_reasons_are_short_and_those_alike_share_a_line(relations: ModuleType) -> None:
    table = importlib.import_module("matrix_table")
    cannot = (
        "{0} in float32 cannot run under the engine continuous: its attention does not read the "
        'cache (the scores of token 1 differ by 0.2); use `engine="static"`.'
    )
    each = [
        ("gptj", relations.Relation("engine cannot", cannot.format("gptj"))),
        ("llama", relations.Relation("held", answers=8, differ={"stock": 3, "batch-invariant": 0})),
        ("mpt", relations.Relation("engine cannot", cannot.format("mpt"))),
        ("rwkv", None),
        ("odd", relations.Relation("refused", "odd in bfloat16 is a|b, so: use `x`.")),
    ]
    assert table.reasons(each) == [
        "- engine cannot: its attention does not read the cache (gptj, mpt).",
        r"- refused: it is a\|b, so (odd).",
    ]
    assert [table.cell(relation) for _, relation in each[:4]] == [
        "engine cannot",
        "held (stock 3 of 8)",
        "engine cannot",
        "–",
    ]
    rows = [
        table.Row(name, relations={"continuous": relation} if relation else {})
        for name, relation in each
    ]
    assert table.counted("continuous", rows) == (
        "- `continuous`: 2 engine cannot, 1 held, 1 refused; stock kernels differ in 1 of the 1 "
        "that ran."
    )
