"""The RL experiment: the bitwise arm has no gap, the others do, and a planted gap stops it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDERS = ("on_policy_rl", "on_policy_rl/embedded")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training loop, with a small task."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = importlib.import_module("rl_loop")
    small = replace(module.tiny(), prompts=2, samples=3, held_out=4)
    monkeypatch.setattr(module, "tiny", lambda: small)
    return module


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("rl_report")


def arm(script: ModuleType, name: str) -> Any:
    return next(each for each in script.ARMS if each.name == name)


def stored(folder: str) -> dict[str, Any]:
    text = (ROOT / "results" / folder / "results.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@pytest.mark.sweep
def test_the_bitwise_arm_has_no_gap_and_no_correction_has_one(script: ModuleType) -> None:
    start = script.warmed_up(0, 3)
    bitwise = script.train(arm(script, "bitwise"), start, 0, 2)
    assert (bitwise.max_abs, bitwise.k3) == ([0, 0], [0, 0])
    assert (bitwise.ratio_smallest, bitwise.ratio_largest) == ([1, 1], [1, 1])
    none = script.train(arm(script, "none"), start, 0, 2)
    assert min(none.max_abs) > 0
    assert none.ratio_smallest < none.ratio_largest
    assert none.numbers == script.train(arm(script, "none"), start, 0, 2).numbers


def test_a_gap_in_the_bitwise_arm_stops_the_experiment(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the arm without its kernels."""

    @contextmanager
    def stock(*, invariant: bool) -> Iterator[None]:
        yield

    monkeypatch.setattr(script, "kernels", stock)
    with pytest.raises(RuntimeError, match="gap between sampler and trainer"):
        script.train(arm(script, "bitwise"), script.warmed_up(0, 3), 0, 2)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["truncated", "stale"])
def test_a_run_goes_on_from_its_file_as_if_it_had_not_stopped(
    script: ModuleType, tmp_path: Path, name: str
) -> None:
    start, chosen = script.warmed_up(0, 1), replace(arm(script, name), stale=int(name == "stale"))
    whole = script.train(chosen, start, 0, 3)
    first = script.train(chosen, start, 0, 2, state=tmp_path / "run.pt")
    assert len(first.reward) == 2
    resumed = script.train(chosen, start, 0, 3, state=tmp_path / "run.pt")
    assert resumed.numbers == whole.numbers
    kept = torch.load(tmp_path / "run.pt", weights_only=True)
    kept["weights"][0].add_(1)
    torch.save(kept, tmp_path / "run.pt")
    assert script.train(chosen, start, 0, 4, state=tmp_path / "run.pt").numbers != (
        script.train(chosen, start, 0, 4).numbers
    )


def test_only_the_last_layers_are_trained_if_the_task_says_so(script: ModuleType) -> None:
    run = script.Run(
        arm(script, "none"), script.warmed_up(0, 1), 0, replace(script.tiny(), last_layers=1)
    )
    before = {name: weight.clone() for name, weight in run.master.named_parameters()}
    run.step()
    changed = {
        name for name, weight in run.master.named_parameters() if not weight.equal(before[name])
    }
    assert changed
    assert all(name.startswith("model.layers.2.") for name in changed)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [([3, 2, 1, 12], 1.0), ([3, 2, 12], 0.5), ([3, 2, 1, 5, 12], 0.0), ([], 0.0)],
)
def test_the_reward_counts_tokens_in_their_place(
    script: ModuleType, completion: list[int], expected: float
) -> None:
    assert script.reward(completion, [3, 2, 1, 12]) == expected


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_committed_table_is_made_from_its_curves(
    script: ModuleType, report: ModuleType, folder: str
) -> None:
    data = stored(folder)
    curves = [script.Curves(**each) for each in data["curves"]]
    committed = (ROOT / "results" / folder / "table.md").read_text(encoding="utf-8")
    assert report.table_of(curves, data["repeats"]) == committed
    curves[0].k3[0] += 1
    assert report.table_of(curves, data["repeats"]) != committed


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_committed_bitwise_arm_has_no_gap_at_any_step(folder: str) -> None:
    data = stored(folder)
    assert data["repeats"]["bitwise"] is True
    largest = {each["arm"]: max(each["max_abs"]) for each in data["curves"]}
    assert largest.pop("bitwise") == 0
    assert min(largest.values()) > 0


def test_a_difference_is_taken_seed_by_seed(script: ModuleType, report: ModuleType) -> None:
    made = [
        script.Curves(name, seed, reward=[reward], held_out=reward / 2)
        for name, rewards in (("none", (0.2, 0.6)), ("stale", (0.1, 0.3)))
        for seed, reward in enumerate(rewards)
    ]
    options = {"model": "tiny", "warm_up": 1, "learning_rate": 1e-3}
    text = report.summary_of(made, options)
    assert "| stale | -0.200 (-0.300 to -0.100) | -0.100 (-0.150 to -0.050) |" in text
    assert "| none |" not in text


def test_kept_runs_with_other_options_are_refused(script: ModuleType, tmp_path: Path) -> None:
    main = importlib.import_module("on_policy_rl")
    options = {"model": "tiny", "learning_rate": 1e-3, "steps": 3, "seeds": 1}
    main.check_state(tmp_path, options)
    main.check_state(tmp_path, options | {"steps": 9, "seeds": 2})
    with pytest.raises(SystemExit, match="other options"):
        main.check_state(tmp_path, options | {"learning_rate": 1e-4})


@pytest.mark.sweep
def test_the_whole_experiment_writes_its_files_and_a_repeat_that_differs_stops_it(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = importlib.import_module("on_policy_rl")
    monkeypatch.setitem(main.TASKS, "tiny", script.tiny)
    command = ["on_policy_rl.py", "--steps", "1", "--warm-up", "1", "--seeds", "1"]
    command += ["--state", str(tmp_path / "state"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main.main()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"results.json", "table.md", "summary.md", "curves.svg"}
    path = tmp_path / "state" / "bitwise-0-again.pt"
    kept = torch.load(path, weights_only=True)
    kept["curves"]["reward"][0] += 1
    torch.save(kept, path)
    with pytest.raises(RuntimeError, match="does not repeat bit for bit"):
        main.main()


@pytest.mark.slow
def test_the_embedded_model_trains_without_a_gap_in_the_mode(script: ModuleType) -> None:
    tasks = importlib.import_module("rl_tasks").TASKS
    small = replace(tasks["embedded"](), prompts=1, samples=2, held_out=1)
    prompt, wanted = small.encode([3, 1, 4])
    assert len(wanted) == 2 * 3 + 1 <= small.most_tokens
    assert wanted[-1] == small.eos
    assert small.eos not in prompt
    start = script.warmed_up(0, 0, small)
    bitwise = script.train(arm(script, "bitwise"), start, 0, 1, small)
    assert bitwise.max_abs == [0]
    assert script.train(arm(script, "none"), start, 0, 1, small).max_abs[0] > 0
