"""Real servers with the embedded model, through the real program. `make test-servers` runs them.

Each is started by `tests/servers/launch.py` in the environment that `tests/servers/install.sh`
makes; without it the tests of that server are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers.launch import Server, launch, missing, python
from servers.ray_cluster import RANKS, cluster, missing_ray

from detcheck import load

pytestmark = pytest.mark.servers

PROGRAM = ("-c", "from detcheck.cli.app import main; main()")
LIGHTHOUSE = "Write a short story about a lighthouse keeper."
LIMIT_S = 900


def needs(kind: str) -> pytest.MarkDecorator:
    reason = missing(kind)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(scope="module")
def detcheck(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a command line through the real program; `inside` names a server's environment."""
    folder = tmp_path_factory.mktemp("servers")

    def call(*args: str, inside: str | None = None) -> subprocess.CompletedProcess[str]:
        interpreter = str(python(inside)) if inside else sys.executable
        return subprocess.run(
            [interpreter, *PROGRAM, *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
            cwd=folder,
        )

    call.folder = folder
    return call


def measured(result: subprocess.CompletedProcess[str], code: int = 0) -> list[dict[str, Any]]:
    assert result.returncode == code, result.stderr
    summary: list[dict[str, Any]] = json.loads(result.stdout)["summary"]
    return summary


def verdict(result: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    document = json.loads(result.stdout)
    reasons = " ".join(str(reason) for reason in document["reasons"])
    return result.returncode, document["verdict"], reasons


@pytest.fixture(scope="module")
def vllm() -> Iterator[Server]:
    with launch("vllm") as server:
        yield server


@needs("vllm")
def test_vllm_gives_another_answer_under_load_and_fails(detcheck, vllm):
    (row,) = measured(
        detcheck(
            *("run", vllm.model, "--endpoint", vllm.endpoint, "-p", LIGHTHOUSE),
            *("-n", "131", "-b", "1,64", "--max-new-tokens", "150", "-o", "vllm", "--json"),
        )
    )
    assert (row["completions"], row["failed"]) == (131, 0)
    assert row["distinct"] >= 2
    assert 0 < row["first_divergence"] < 150
    run = load(detcheck.folder / "vllm")
    alone, loaded = run.conditions
    assert (alone.rows_max, alone.evidence_source) == (1, "server counters")
    assert 48 <= loaded.rows_max <= 64
    assert loaded.prefix_cache_hits == 0
    assert run.variants[0].token_ids is not None
    gate = detcheck("gate", "vllm", "--json")
    assert verdict(gate)[:2] == (1, "fail"), gate.stdout


@needs("vllm")
def test_vllm_names_what_it_serves(detcheck, vllm):
    result = detcheck("run", "gpt-5", "--endpoint", vllm.endpoint, "-n", "2", "-b", "1,2")
    assert result.returncode == 2
    assert f"it serves {vllm.model}" in result.stderr


@needs("vllm")
def test_vllm_in_process_with_one_rank_and_with_three(detcheck):
    (row,) = measured(
        detcheck(
            *("run", "--engine", "vllm", "-k", "stock", "--tensor-parallel", "1,3"),
            *("-p", LIGHTHOUSE, "-n", "7", "-b", "1,4", "--max-new-tokens", "60"),
            *("-o", "ranks", "--json"),
            inside="vllm",
        )
    )
    assert (row["completions"], row["failed"]) == (14, 0)
    assert row["distinct"] >= 2, "three ranks sum in another order than one"
    run = load(detcheck.folder / "ranks")
    assert [(each.placement, each.batch_size) for each in run.conditions] == [
        *(("tp1", 1), ("tp1", 4), ("tp3", 1), ("tp3", 4)),
    ]
    for condition in run.conditions:
        assert condition.rows_max == condition.batch_size
        assert condition.status == "done"
    assert run.completions.rows_max.min() >= 1
    assert row["flips"]["confident"] == 0


@pytest.mark.skipif(missing_ray() is not None, reason=str(missing_ray()))
def test_vllm_runs_its_ranks_on_two_ray_nodes(detcheck, monkeypatch):
    with cluster() as nodes:
        for name, value in nodes.variables.items():
            monkeypatch.setenv(name, value)
        (row,) = measured(
            detcheck(
                *("run", "--engine", "vllm", "--vllm-executor", "ray", "--tensor-parallel", "3"),
                *("-k", "stock", "-p", LIGHTHOUSE, "-n", "5", "-b", "1,4", "-o", "ray", "--json"),
                *("--max-new-tokens", "20"),
                inside="vllm",
            )
        )
        assert nodes.ranks_by_node() == list(RANKS)
    assert (row["completions"], row["failed"]) == (5, 0)
    run = load(detcheck.folder / "ray")
    assert [(each.placement, each.rows_max) for each in run.conditions] == [("", 1), ("", 4)]


@needs("vllm")
def test_vllm_cannot_be_batch_invariant_on_a_cpu_and_says_so(detcheck):
    result = detcheck(
        *("run", "--engine", "vllm", "-n", "5", "-b", "1,4", "-o", "invariant"), inside="vllm"
    )
    if result.returncode == 0:
        pytest.skip("this vLLM can")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert "vLLM does not run here with VLLM_BATCH_INVARIANT=1" in result.stderr
    assert "--kernels stock" in result.stderr
    assert not (detcheck.folder / "invariant").exists()


@needs("transformers")
def test_transformers_serve_with_continuous_batching(detcheck):
    with launch("transformers") as server:
        (row,) = measured(
            detcheck(
                *("run", server.model, "--endpoint", server.endpoint, "-p", LIGHTHOUSE),
                *("-n", "19", "-b", "1,16", "--max-new-tokens", "100", "-o", "hf", "--json"),
            )
        )
    assert (row["completions"], row["failed"]) == (19, 0)
    assert row["distinct"] >= 2
    loaded = load(detcheck.folder / "hf").conditions[1]
    assert (loaded.rows_max, loaded.evidence_source) == (16, "streamed tokens")
    assert verdict(detcheck("gate", "hf", "--json"))[:2] == (1, "fail")


@needs("llama")
def test_llama_cpp_python_never_batches_and_proves_nothing(detcheck):
    with launch("llama") as server:
        (row,) = measured(
            detcheck(
                *("run", server.model, "--endpoint", server.endpoint, "-p", LIGHTHOUSE),
                *("-n", "11", "-b", "1,4", "--max-new-tokens", "40", "-o", "llama", "--json"),
            )
        )
    assert (row["completions"], row["failed"], row["distinct"]) == (11, 0, 1)
    code, word, reasons = verdict(detcheck("gate", "llama", "--json"))
    assert (code, word) == (3, "inconclusive")
    assert "one request at a time" in reasons
