"""TRL's trainer in the invariant mode: its own metrics are exact, and a gap stops the script."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

import detcheck
from detcheck.kernels.settings import FAMILIES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "trl_on_policy"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("trl_on_policy")


def test_the_committed_table_is_made_from_its_figures(script: ModuleType) -> None:
    stored = json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))
    committed = (RESULTS / "table.md").read_text(encoding="utf-8")
    assert script.table_of(stored["arms"]) == committed
    stored["arms"][0]["steps"][0][f"{script.DIFFERENCE}/max"] += 1
    assert script.table_of(stored["arms"]) != committed


def test_the_committed_arms_in_the_mode_are_exact_and_the_others_are_not(
    script: ModuleType,
) -> None:
    stored = json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))
    steps = {each["arm"]: each["steps"] for each in stored["arms"]}
    assert [each["arm"] for each in stored["arms"]] == [arm.name for arm in script.ARMS]
    for name in ("fully-invariant", "fully-invariant, autocast"):
        script.check_exact(steps[name])
    for name in ("stock", "stock, autocast", "fully-invariant, TRL's positions"):
        with pytest.raises(RuntimeError, match="The exact arm has a gap"):
            script.check_exact(steps[name])


@pytest.mark.parametrize("tile", [5, 64])
def test_the_samplers_logprobs_are_those_of_a_log_softmax(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    monkeypatch.setattr(script, "TILE", tile)
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)) * 9
    tokens = torch.tensor([0, 15, 4, 5, 9, 10])
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(script.logprobs_of(logits, tokens), expected)


@pytest.mark.sweep
def test_the_rest_of_continuous_batching_is_the_logarithm_of_a_softmax(script: ModuleType) -> None:
    """Its records have the bits of `softmax().log()` of the trainer's own logits, all of them."""
    task = script.tiny()
    model = script.warmed_up(0, 3).bfloat16()
    prompts = [prompt for prompt, _ in task.problems(torch.Generator().manual_seed(0), 6)]
    config = GenerationConfig(
        max_new_tokens=task.most_tokens,
        do_sample=True,
        eos_token_id=task.eos,
        pad_token_id=task.pad,
    )
    trainer = SimpleNamespace(generation_config=config)
    with torch.no_grad(), detcheck.batch_invariant(FAMILIES):
        completions, recorded = script.ContinuousSampler(trainer).sample(model, prompts)
        of_softmax, of_log_softmax = [], []
        for prompt, own in zip(prompts, completions, strict=True):
            logits = model(torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1].float()
            chosen = torch.tensor(own)[:, None]
            of_softmax += logits.softmax(-1).gather(1, chosen)[:, 0].log().tolist()
            of_log_softmax += logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
    flat = [value for row in recorded for value in row]
    assert flat == of_softmax
    gaps = [abs(a - b) for a, b in zip(flat, of_log_softmax, strict=True)]
    assert 0 < max(gaps) < 1e-6


def test_positions_leave_padding_out(script: ModuleType) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    _, inputs = script.add_positions(None, (), {"attention_mask": mask})
    assert inputs["position_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    given = {"attention_mask": mask, "position_ids": mask}
    assert script.add_positions(None, (), given)[1] is given


@pytest.mark.filterwarnings("ignore")
def test_trl_reports_no_gap_in_the_mode_and_one_with_its_own_positions(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    start = script.warmed_up(0, 3)
    arms = {arm.name: arm for arm in script.ARMS}
    exact = script.train(arms["fully-invariant"], start, 2)
    script.check_exact(exact)
    assert len(exact) == 2
    monkeypatch.setattr(script, "add_positions", lambda _, args, inputs: (args, inputs))
    with pytest.raises(RuntimeError, match="The exact arm has a gap"):
        script.train(arms["fully-invariant"], start, 2)
