"""The embedded model, end to end, through the real program: what the whole tool is for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detcheck import analyse, load
from detcheck.analysis.results import Group
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-c", "from detcheck.cli.app import main; main()")
LIGHTHOUSE = "Write a short story about a lighthouse keeper."


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands of this module run."""
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(scope="module")
def detcheck(folder: Path) -> Callable[..., Result]:
    """Run a command line through the real program."""

    def call(*args: str) -> Result:
        done = subprocess.run(
            [*PROGRAM, *args], capture_output=True, text=True, check=False, timeout=300, cwd=folder
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="module")
def lighthouse(detcheck: Callable[..., Result]) -> list[dict[str, Any]]:
    """The summary of the run that the other tests look at: `run` in their folder."""
    result = detcheck(
        *("run", "-p", LIGHTHOUSE, "-n", "21", "-b", "1,4,16"),
        *("--max-new-tokens", "60", "-o", "run", "--json"),
    )
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["run"] == "run"
    return document["summary"]


def groups(path: Path) -> dict[str, Group]:
    return {group.kernels: group for group in analyse(load(path)).groups}


def test_stock_kernels_give_several_answers_and_batch_invariant_ones_one(
    lighthouse: list[dict[str, Any]],
) -> None:
    stock, invariant = lighthouse
    assert (stock["kernels"], invariant["kernels"]) == (STOCK, BATCH_INVARIANT)
    assert (stock["completions"], invariant["completions"]) == (21, 21)
    assert (stock["failed"], invariant["failed"]) == (0, 0)
    assert stock["distinct"] >= 2
    assert 0 < stock["first_divergence"] < 60
    assert sum(stock["flips"].values()) == stock["distinct"] - 1
    assert stock["flips"]["confident"] == 0, "rounding does not turn what is certain"
    assert (invariant["distinct"], invariant["most_common"]) == (1, 21)
    assert invariant["first_divergence"] is None


@pytest.mark.usefixtures("lighthouse")
def test_log_probabilities_are_bitwise_equal_where_the_kernels_are_invariant(folder: Path) -> None:
    measured = groups(folder / "run")
    assert measured[BATCH_INVARIANT].logprobs_differ == 0
    table = load(folder / "run").completions
    kernels = [record.kernels for record in load(folder / "run").conditions]
    stock = [kernels[condition] == STOCK for condition in table.condition]
    assert len(set(table.digest[stock])) > 1, "the control must be able to differ"


@pytest.mark.usefixtures("lighthouse")
def test_batches_were_observed_and_the_kernels_proved(folder: Path) -> None:
    run = load(folder / "run")
    assert {record.batch_size: record.rows_max for record in run.conditions} == {1: 1, 4: 4, 16: 16}
    assert run.completions.rows_max.min() >= 1
    assert run.proofs[BATCH_INVARIANT].complete
    assert sum(run.proofs[BATCH_INVARIANT].overrides.values()) > 1000
    for group in groups(folder / "run").values():
        assert group.evidence.observed
    assert [len(variant) for variant in run.variants if len(variant) > 60] == []


@pytest.mark.usefixtures("lighthouse")
def test_the_gate_passes_the_one_and_fails_the_other(detcheck: Callable[..., Result]) -> None:
    passed = detcheck("gate", "run", "--max-distinct", "1", "--kernels", BATCH_INVARIANT, "--json")
    assert passed.code == 0, passed.out
    assert json.loads(passed.out)["verdict"] == "pass"
    failed = detcheck("gate", "run", "--kernels", STOCK, "--json")
    assert failed.code == 1, failed.out
    assert json.loads(failed.out)["verdict"] == "fail"


@pytest.mark.usefixtures("lighthouse")
def test_the_report_is_written(detcheck: Callable[..., Result], folder: Path) -> None:
    result = detcheck("report", "run")
    assert result.code == 0, result.err
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert LIGHTHOUSE in page
    assert "<svg" in page or "data:image/" in page
    assert LIGHTHOUSE.rstrip(".") in (folder / "run/report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("lighthouse")
def test_a_finished_run_is_resumed_to_itself(detcheck: Callable[..., Result], folder: Path) -> None:
    before = (folder / "run/completions.jsonl").read_bytes()
    result = detcheck("run", "--resume", "run", "--json")
    assert result.code == 0, result.err
    assert (folder / "run/completions.jsonl").read_bytes() == before
    assert load(folder / "run").proofs[BATCH_INVARIANT].complete
    again = detcheck("gate", "run", "--kernels", BATCH_INVARIANT)
    assert again.code == 0, again.out


def test_mixed_traffic_in_lockstep_batches(detcheck: Callable[..., Result], folder: Path) -> None:
    result = detcheck(
        *("run", "-p", "Describe a thunderstorm over the harbour.", "--engine", "static"),
        *("--traffic", "mixed", "-n", "30", "-b", "1,8", "--max-new-tokens", "24"),
        *("-o", "mixed", "--json"),
    )
    assert result.code == 0, result.err
    _, invariant = json.loads(result.out)["summary"]
    assert (invariant["completions"], invariant["distinct"]) == (30, 1)
    assert groups(folder / "mixed")[BATCH_INVARIANT].logprobs_differ == 0
    run = load(folder / "mixed")
    assert {r.batch_size: r.rows_max for r in run.conditions} == {1: 1, 8: 8}
    gate = detcheck("gate", "mixed", "--kernels", BATCH_INVARIANT)
    assert gate.code == 0, gate.out


def test_batches_of_one_alone_prove_nothing(detcheck: Callable[..., Result]) -> None:
    result = detcheck(
        *("run", "-p", "Name a colour.", "-n", "3", "-b", "1", "--max-new-tokens", "8"),
        *("-o", "single", "--json"),
    )
    assert result.code == 0, result.err
    assert [row["distinct"] for row in json.loads(result.out)["summary"]] == [1, 1]
    gate = detcheck("gate", "single", "--kernels", BATCH_INVARIANT, "--json")
    assert gate.code == 3, gate.out
    assert json.loads(gate.out)["verdict"] == "inconclusive"


def test_a_prompt_beyond_the_context_is_refused(
    detcheck: Callable[..., Result], folder: Path
) -> None:
    (folder / "long.txt").write_text("lighthouse " * 9000, encoding="utf-8")
    result = detcheck("run", "--prompts", "long.txt", "-o", "long")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1, result.err
    assert "exceeds the model's context of 8192: shorten it" in result.err
    assert not (folder / "long").exists()


def test_a_short_run_whose_logits_move_finds_no_bug(
    detcheck: Callable[..., Result], folder: Path
) -> None:
    """The logits move by up to 0.6 between loads. If noise could not be seen, it is unknown."""
    prompt = "List three prime numbers and say why each is prime."
    result = detcheck(
        *("run", "-p", prompt, "-n", "6", "-b", "1,4", "-k", STOCK),
        *("--max-new-tokens", "6", "-o", "short", "--json"),
    )
    assert result.code == 0, result.err
    [row] = json.loads(result.out)["summary"]
    assert row["flips"]["confident"] == 0
    group = groups(folder / "short")[STOCK]
    assert group.noise is None or group.noise > 0
    assert group.alive


def test_seeds_are_told_from_what_the_system_adds(
    detcheck: Callable[..., Result], folder: Path
) -> None:
    result = detcheck(
        *("run", "-p", "Tell me a joke.", "-n", "8", "-b", "1,4", "--seeds", "3"),
        *("--temperature", "0.7", "--max-new-tokens", "24", "-o", "seeds", "--json"),
    )
    assert result.code == 0, result.err
    stock, invariant = json.loads(result.out)["summary"]
    assert (stock["seeds"], invariant["seeds"]) == (3, 3)
    assert (invariant["distinct"], invariant["distinct_within_seed"]) == (3, 1)
    found = groups(folder / "seeds")
    assert found[BATCH_INVARIANT].answers_from_system == 0
    assert found[STOCK].answers_from_seeds == 3
    assert found[STOCK].flips["confident"] == 0
