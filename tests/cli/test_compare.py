"""`detcheck compare`: two runs side by side, judged by nobody."""

from __future__ import annotations

import json

from gate.runs import ENVIRONMENT, write

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK


def test_agreement_and_parting_are_shown(detcheck, good, tmp_path):
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=1, kernels=BATCH_INVARIANT)])
    result = detcheck("compare", good, write(tmp_path / "other", engine))
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines()]
    assert any(line.startswith('1  "Why is the sky blue?"') for line in result.out.splitlines())
    assert ["1", BATCH_INVARIANT, "1", "/", "1", "0", "0", "%", "token", "5"] in [
        row[:10] for row in rows
    ]
    assert f"1 {BATCH_INVARIANT}: the references differ, they part at token 5, after" in result.out


def test_the_tables_fit_a_narrow_terminal(detcheck, good, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    sizes = {"completions": 96, "batch_sizes": (1, 2, 4, 8, 16, 32)}
    wide = write(tmp_path / "wide", **sizes)
    out = detcheck("compare", wide, wide).out
    assert max(map(len, out.splitlines()[3:])) <= 80
    assert out.count(BATCH_INVARIANT) == 2


def test_json_holds_what_was_planted(detcheck, good, bad):
    document = json.loads(detcheck("compare", good, bad, "--json").out)
    stock, invariant = document["pairs"]
    assert (stock["left"]["distinct"], stock["right"]["distinct"]) == (2, 1)
    assert (invariant["left"]["distinct"], invariant["right"]["distinct"]) == (1, 2)
    assert stock["shared"] == invariant["shared"] == 1
    assert stock["references_equal"] is True
    by_size = {
        (row["kernels"], row["batch_size"]): row["agreement"] for row in document["conditions"]
    }
    assert by_size[STOCK, 1] == by_size[BATCH_INVARIANT, 1] == 1
    assert by_size[STOCK, 8] == by_size[BATCH_INVARIANT, 8] == 0


def test_differences_of_the_runs_are_listed(detcheck, good, tmp_path):
    environment = {**ENVIRONMENT, "packages": {"torch": "2.13.0", "transformers": "5.17.0"}}
    prompts = ("Why is the sky blue?", "And the sea?")
    other = write(tmp_path / "other", environment=environment, prompts=prompts, load_seed=3)
    out = detcheck("compare", good, other).out
    assert "environment: torch 2.12.0 → 2.13.0" in out
    assert "experiment: load seed 0 → 3" in out
    assert "only in B: 1 prompt" in out


def test_no_common_prompt_is_a_usage_error(detcheck, good, tmp_path):
    other = write(tmp_path / "other", prompts=("Other?",))
    result = detcheck("compare", good, other)
    assert result.code == 2
    assert "no prompt in common" in result.only_sentence


def test_runs_of_other_kernels_are_paired(detcheck, tmp_path):
    left = write(tmp_path / "left", kernels=(STOCK,))
    right = write(tmp_path / "right", kernels=(BATCH_INVARIANT,))
    document = json.loads(detcheck("compare", left, right, "--json").out)
    (pair,) = document["pairs"]
    assert (pair["left"]["kernels"], pair["right"]["kernels"]) == (STOCK, BATCH_INVARIANT)
    assert pair["agreement"] == 1


def test_a_run_without_answers_is_compared_all_the_same(detcheck, good, tmp_path):
    empty = write(tmp_path / "empty", stop_after=0)
    result = detcheck("compare", good, empty)
    assert result.code == 0
    document = json.loads(detcheck("compare", good, empty, "--json").out)
    assert document["pairs"][0]["agreement"] is None
    assert document["pairs"][0]["references_equal"] is False


def test_different_token_limits_are_reported(detcheck, tmp_path):
    left = write(tmp_path / "left", kernels=(STOCK,), max_new_tokens=6)
    right = write(tmp_path / "right", kernels=(STOCK,), max_new_tokens=12)
    out = detcheck("compare", left, right).out
    assert "answers are compared up to token 6, the smaller limit" in out
    document = json.loads(detcheck("compare", left, right, "--json").out)
    assert document["compared_tokens"] == 6
    assert document["pairs"][0]["shared"] == 1
