"""The RL experiment: the bitwise arm has no gap, the others do, and a planted gap stops it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = importlib.import_module("on_policy_rl")
    small = replace(module.tiny(), prompts=2, samples=3)
    monkeypatch.setattr(module, "tiny", lambda: small)
    return module


def arm(script: ModuleType, name: str) -> Any:
    return next(each for each in script.ARMS if each.name == name)


@pytest.mark.sweep
def test_the_bitwise_arm_has_no_gap_and_no_correction_has_one(script: ModuleType) -> None:
    start = script.warmed_up(0, 3)
    bitwise = script.train(arm(script, "bitwise"), start, 0, 2)
    assert (bitwise.max_abs, bitwise.k3) == ([0, 0], [0, 0])
    none = script.train(arm(script, "none"), start, 0, 2)
    assert min(none.max_abs) > 0
    assert none.numbers == script.train(arm(script, "none"), start, 0, 2).numbers


def test_a_gap_in_the_bitwise_arm_stops_the_experiment(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the arm without its kernels."""

    @contextmanager
    def stock(_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(script, "kernels", stock)
    with pytest.raises(RuntimeError, match="gap between sampler and trainer"):
        script.train(arm(script, "bitwise"), script.warmed_up(0, 3), 0, 2)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [([3, 2, 1, 12], 1.0), ([3, 2, 12], 0.5), ([3, 2, 1, 5, 12], 0.0), ([], 0.0)],
)
def test_the_reward_counts_tokens_in_their_place(
    script: ModuleType, completion: list[int], expected: float
) -> None:
    assert script.reward(completion, [3, 2, 1, 12]) == expected


@pytest.mark.parametrize("folder", ["on_policy_rl", "on_policy_rl/embedded"])
def test_the_committed_table_is_made_from_its_curves(script: ModuleType, folder: str) -> None:
    kept = ROOT / "results" / folder
    stored = json.loads((kept / "results.json").read_text(encoding="utf-8"))
    curves = [script.Curves(**each) for each in stored["curves"]]
    committed = (kept / "table.md").read_text(encoding="utf-8")
    assert script.table_of(curves, stored["repeats"]) == committed
    curves[0].k3[0] += 1
    assert script.table_of(curves, stored["repeats"]) != committed


def test_the_committed_bitwise_arm_of_the_embedded_model_has_no_gap_at_any_step() -> None:
    folder = ROOT / "results" / "on_policy_rl" / "embedded"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert stored["repeats"] == {"none": True, "bitwise": True}
    gaps = {(each["arm"], gap > 0) for each in stored["curves"] for gap in each["max_abs"]}
    assert gaps == {("none", True), ("bitwise", False)}


@pytest.mark.slow
def test_the_embedded_model_trains_without_a_gap_in_the_mode(script: ModuleType) -> None:
    small = replace(script.TASKS["embedded"](), prompts=1, samples=2)
    prompt, wanted = small.encode([3, 1, 4])
    assert len(wanted) == 2 * 3 + 1 <= small.most_tokens
    assert wanted[-1] == small.eos
    assert small.eos not in prompt
    start = script.warmed_up(0, 0, small)
    bitwise = script.train(arm(script, "bitwise"), start, 0, 1, small)
    assert bitwise.max_abs == [0]
    assert script.train(arm(script, "none"), start, 0, 1, small).max_abs[0] > 0
