"""The evaluation that an experiment makes by itself: its items, its figures, and its results."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from detcheck.completion import Completion

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "evaluation_noise"


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("evaluation_noise")


@pytest.fixture
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))
    return found


def test_every_item_has_the_right_answer(noise: ModuleType) -> None:
    items = noise.make_items(200, seed=0)
    assert len({item.prompt for item in items}) == 200
    assert [item.parser for item in items[:4]] == ["number", "letter"] * 2
    for item in items:
        *_, question = item.prompt.split("Q: " if item.parser == "number" else "\n\n")
        if item.parser == "number":
            a, sign, b = question.removeprefix("What is ").removesuffix("?\nA:").split()
            assert int(item.answer) == {"+": int(a) + int(b), "-": int(a) - int(b)}.get(
                sign, int(a) * int(b)
            )
        else:
            kind, *choices, _ = question.split("\n")
            word = next(c for c in choices if c.startswith(item.answer)).partition(". ")[2]
            assert word in noise.KINDS[kind.removeprefix("Which is ").removesuffix("?")]


def test_the_items_depend_on_the_seed_alone(noise: ModuleType) -> None:
    assert noise.make_items(20, seed=1) == noise.make_items(20, seed=1)
    assert noise.make_items(20, seed=1) != noise.make_items(20, seed=2)


def test_the_figures_of_planted_answers(noise: ModuleType) -> None:
    """Two items, right alone; under a load of 4, one is wrong in the second of two orders.

    The three scores are 100, 100 and 50: half of the spread is 25, the mean 83.3.
    """
    items = noise.make_items(2, seed=0)
    right = [Completion(f" {item.answer}\nQ: 99", "stop") for item in items]
    wrong = [right[0], Completion(" Z", "stop")]
    row = noise.row_of("stock", "float32", items, {(1, 0): right, (4, 0): right, (4, 1): wrong})
    assert dict(row["scores_by_load"]) == {1: [100.0], 4: [100.0, 50.0]}
    assert (row["worst"], row["best"], row["flips"]) == (50.0, 100.0, 1)
    assert row["std"] == pytest.approx(50 / 3**0.5)
    assert row["standard_error"] == pytest.approx((250 / 3 * 50 / 3 / 2) ** 0.5)
    assert (row["raw_agreement"], row["parsed_agreement"]) == (0.5, 0.5)
    assert row["flipped"][0]["answers"][1] == ["Z", [4]]
    twin = noise.row_of("stock", "float32", items, {(1, 0): right, (4, 0): right})
    assert (twin["flips"], twin["best"] - twin["worst"]) == (0, 0.0)


def test_the_committed_table_and_items_are_those_of_the_figures(
    noise: ModuleType, stored: dict[str, Any]
) -> None:
    committed = (RESULTS / "table.md").read_text(encoding="utf-8")
    assert noise.table(stored["rows"], stored["items"]) == committed
    items = noise.make_items(stored["items"], stored["seed"])
    lines = (RESULTS / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [item.prompt for item in items]


def test_another_figure_gives_another_table_and_picture(
    noise: ModuleType, stored: dict[str, Any], tmp_path: Path
) -> None:
    """The twin of the test above."""
    picture = noise.scores(stored["rows"]).body
    stored["rows"][0]["best"] += 1
    stored["rows"][0]["scores_by_load"]["1"][0] += 1
    committed = (RESULTS / "table.md").read_text(encoding="utf-8")
    assert noise.table(stored["rows"], stored["items"]) != committed
    assert noise.scores(stored["rows"]).body != picture
    names = ("items", "seed", "orders", "max_new_tokens")
    options = argparse.Namespace(out=tmp_path, **{name: stored[name] for name in names})
    noise.write(stored["rows"], options)
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "table.md", "scores.svg"}
