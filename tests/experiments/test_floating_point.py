"""The small facts: each measurement can tell what it claims to tell."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "floating_point"


@pytest.fixture(name="script")
def _script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("floating_point")


def test_the_order_changes_a_sum(script: ModuleType) -> None:
    in_random_orders, in_every_order = script.sums()
    assert 100 < in_random_orders.value <= in_every_order.value == 275


def test_without_rounding_errors_there_is_one_sum(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the count is of rounding errors, not of anything else."""
    monkeypatch.setattr(script, "plain_sum", math.fsum)
    assert [fact.value for fact in script.sums()] == [1, 1]


def test_repeats_are_equal_and_a_planted_change_is_counted(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "REPEATS", 5)
    assert script.different_repeats("cpu", torch.float32, 16) == 1
    drift = iter([0.0, 0.0, 1.0, 1.0, 2.0])
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: product(a, b) + next(drift), raising=True
    )
    assert script.different_repeats("cpu", torch.float32, 16) == 3


def test_invariant_products_do_not_depend_on_the_other_rows(script: ModuleType) -> None:
    assert script.row_alone_against_all("cpu", torch.float32, 256, invariant=True) == 0.0


def test_parts_of_a_fixed_size_do_not_depend_on_the_batch(script: ModuleType) -> None:
    fixed_count, fixed_size = script.splits()
    assert fixed_count.value > 1
    assert fixed_size.value == 1
    assert script.parts_of_size(256) == [256, 256, 256, 232]


@pytest.mark.parametrize("lengths", [[1000], [1, 999], [250] * 4])
def test_the_split_attention_is_attention(script: ModuleType, lengths: list[int]) -> None:
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(script.HEAD_DIM, generator=rng)
    keys, values = (torch.randn(script.KEYS, script.HEAD_DIM, generator=rng) for _ in range(2))
    expected = torch.softmax(keys @ query / script.HEAD_DIM**0.5, 0) @ values
    torch.testing.assert_close(script.attention(lengths), expected)


def test_the_committed_table_is_made_from_its_figures(script: ModuleType) -> None:
    stored = json.loads((COMMITTED / "results.json").read_text(encoding="utf-8"))
    facts = [script.Fact(**fact) for fact in stored["facts"]]
    assert script.table(facts) == (COMMITTED / "table.md").read_text(encoding="utf-8")
    assert stored["environment"]["packages"]["torch"]
