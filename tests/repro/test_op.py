"""A script of the differing op: fails for stock kernels, and passes for the invariant ones."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask
from probes.test_trace import on_the_tiny_model, planted_silu, replay_with

import detcheck
from detcheck.errors import MeasurementError
from detcheck.models import LoadedModel
from detcheck.probes.calls import CallPair, OpCall
from detcheck.probes.trace import subject_of_prompt, trace
from detcheck.probes.trace_results import FirstOp, Trace
from detcheck.repro import op
from detcheck.repro.inputs import pair_inputs
from detcheck.repro.op import write_op

from .conftest import ROOT, Fresh, required

__all__ = ["on_the_tiny_model"]

SLOW, SWEEP = pytest.mark.slow, pytest.mark.sweep

PROMPT = "What is the sea?"


def traced(kernels: str = "stock", engine: str = "static") -> tuple[Trace, CallPair | None]:
    asked = ask(
        prompts=(PROMPT,),
        batch_sizes=(1, 3),
        completions=6,
        max_new_tokens=4,
        kernels=(kernels,),
        engine=engine,
    )
    calls: list[CallPair] = []
    found = trace(subject_of_prompt(*asked), None, calls.append)
    return found, next(iter(calls), None)


@pytest.fixture(
    scope="module",
    params=[pytest.param("static", marks=SWEEP), pytest.param("continuous", marks=SLOW)],
)
def written(
    request: pytest.FixtureRequest, tiny_model: LoadedModel, tmp_path_factory: Any
) -> tuple[Trace, list[Path]]:
    """A trace of stock kernels, and the files that were written for its first op."""
    folder = tmp_path_factory.mktemp("op") / "repro"
    with pytest.MonkeyPatch.context() as patch:
        replay_with(tiny_model, patch)
        found, calls = traced(engine=request.param)
        return found, write_op(found, calls, folder, "/home/someone/tiny")


def test_the_script_fails_for_stock_and_passes_for_the_invariant_kernel(
    written: tuple[Trace, list[Path]], alone: Callable[..., Any]
) -> None:
    paths = written[1]
    assert [path.name for path in paths][:3] == ["repro.py", "environment.txt", "issue.md"]
    done = alone(paths[0])
    assert done.returncode == 1, done.stderr
    assert "the same call twice: equal bits" in done.stdout
    assert "(0x" in done.stdout
    main = runpy.run_path(str(paths[0]))["main"]
    assert main() == 1
    with detcheck.batch_invariant():
        assert main() == 0


UNDER_INVARIANT_KERNELS = """
import runpy, sys
import detcheck
main = runpy.run_path(sys.argv[1])["main"]
with detcheck.batch_invariant():
    sys.exit(main())
"""


@pytest.mark.slow
def test_the_script_runs_in_a_fresh_environment_with_pytorch_alone(
    written: tuple[Trace, list[Path]], fresh: Fresh, tmp_path: Path
) -> None:
    script = written[1][0]
    for package in ("detcheck", "transformers", "msgspec"):
        assert "ModuleNotFoundError" in fresh.run(tmp_path, "-c", f"import {package}").stderr
    done = fresh.run(tmp_path, script)
    assert done.returncode == 1, done.stderr
    assert "(0x" in done.stdout
    fresh.add(*required(["detcheck"]) - {"detcheck"})
    (fresh.packages / "detcheck").symlink_to(ROOT / "detcheck")
    done = fresh.run(tmp_path, "-c", UNDER_INVARIANT_KERNELS, script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_needs_torch_and_the_standard_library_only(
    written: tuple[Trace, list[Path]],
) -> None:
    script = written[1][0].read_text()
    tree = ast.parse(script)
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert "torch" in names
    assert names <= {"base64", "lzma", "os", "sys", "torch"}
    assert len(script) < 8000


def test_the_issue_names_the_op_and_holds_the_output(written: tuple[Trace, list[Path]]) -> None:
    found, paths = written
    issue = paths[2].read_text()
    assert found.first is not None
    assert f"# `{found.first.op}` gives a row other bits in a batch than alone" in issue
    assert "entries differ" in issue
    assert "someone" not in issue
    assert ("changed the generated text" in issue) == found.flip.flipped
    assert "packages.torch" in issue


@pytest.mark.sweep
def test_a_fault_outside_pytorch_is_no_reproduction(tmp_path: Path) -> None:
    """A kernel that is changed in this process only: the script's own process does not see it."""
    with planted_silu(1e-6):
        found, calls = traced("batch-invariant:matmul+attention")
        assert found.first is not None
        assert found.first.op == "aten::silu"
        with pytest.raises(MeasurementError, match="equal bits when it is called outside"):
            write_op(found, calls, tmp_path / "repro", "tiny")
    assert not (tmp_path / "repro").exists()


def test_no_differing_op_is_no_reproduction(tmp_path: Path) -> None:
    found, calls = traced("batch-invariant")
    with pytest.raises(MeasurementError, match="nothing to recreate"):
        write_op(found, calls, tmp_path / "repro", "tiny")
    assert not (tmp_path / "repro").exists()


def pair(batch: torch.Tensor, alone: torch.Tensor, *others: Any) -> CallPair:
    """Calls of an op whose request is row 1 of the batch."""
    mul = torch.ops.aten.mul.Tensor

    def cut(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
        return x[1:2] if tuple(x[1:2].shape) == shape else None

    calls = [OpCall.of(mul, (x, *others), {}, ()) for x in (alone, batch)]
    return CallPair(*calls, cut, alone, batch)


def packed_attention(requests: int, length: int) -> CallPair:
    """Calls of attention over packed requests, and over the first of them alone."""
    torch.manual_seed(0)
    total = requests * length
    query, key, value = (torch.randn(1, 9, total, 64).bfloat16() for _ in range(3))
    request = torch.arange(total) // length
    seen = (request[:, None] == request).tril()
    mask = torch.zeros(total, total).masked_fill(~seen, torch.finfo(torch.bfloat16).min)
    attend = torch.ops.aten.scaled_dot_product_attention.default
    whole = (query, key, value, mask[None, None].bfloat16())

    def cut(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return x[tuple(slice(size) for size in shape)]

    alone = (*(x[:, :, :length] for x in whole[:3]), whole[3][:, :, :length, :length])
    calls = [OpCall.of(attend, args, {"scale": 0.125}, ()) for args in (alone, whole)]
    return CallPair(*calls, cut, attend(*alone, scale=0.125), attend(*whole, scale=0.125))


@SWEEP
def test_the_script_of_packed_attention_takes_the_invariant_kernel(tmp_path: Path) -> None:
    """Kernels replace the function, so the script has to call that and not the op."""
    calls = packed_attention(8, 39)
    name = "aten::scaled_dot_product_attention"
    first = FirstOp(name, "", 0, (1, 9, 39, 64), (1, 9, 312, 64), 1, 1, 1, 1, indirect=False)
    script = op._script(first, calls, pair_inputs(calls), (), {"variables": {}}, None, saved=True)
    (tmp_path / "repro.py").write_text(script)
    assert op._save(pair_inputs(calls), (), tmp_path / "inputs.pt")
    main = runpy.run_path(str(tmp_path / "repro.py"))["main"]
    assert main() == 1
    with detcheck.batch_invariant():
        assert main() == 0


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(4, 64),
        torch.full((4, 64), torch.finfo(torch.float32).min).triu(),
        torch.randn(4, 64).masked_fill(torch.rand(4, 64) > 0.5, float("-inf")),
        torch.randn(4, 64) > 0,
        torch.arange(256).view(4, 64),
    ],
)
def test_values_that_stand_for_something_are_never_seeded(values: torch.Tensor) -> None:
    (found,) = pair_inputs(pair(values, values[1:2]))
    assert found.part == "x0[1:2, :]"
    assert not found.can_be_seeded
    (ordinary,) = pair_inputs(pair(x := torch.randn(4, 64), x[1:2]))
    assert ordinary.can_be_seeded


def laid(x: torch.Tensor, how: str) -> torch.Tensor:
    if how == "transposed":
        return x.t().contiguous().t()
    if how == "offset":
        return torch.cat([torch.zeros(3), x.reshape(-1)])[3:].view(x.shape)
    return x[:, :1].expand(-1, x.shape[1]) if how == "expanded" else x


@pytest.mark.parametrize("how", ["contiguous", "transposed", "offset", "expanded"])
def test_saved_inputs_keep_values_and_layout(how: str, tmp_path: Path) -> None:
    x = laid(torch.randn(4, 40), how)
    one = x[1:2].clone()
    calls = pair(x, one, 2.5)
    first = FirstOp("aten::mul", "", 0, (1, 40), (4, 40), 1, 1, 1, 1, indirect=False)
    script = op._script(first, calls, pair_inputs(calls), (), {"variables": {}}, None, saved=False)
    (tmp_path / "repro.py").write_text(script)
    module = runpy.run_path(str(tmp_path / "repro.py"))
    ((in_batch, factor), _), ((single, _), _) = module["calls"]()
    assert factor == 2.5
    assert torch.equal(in_batch, x)
    assert in_batch.stride() == x.stride()
    assert in_batch.data_ptr() % 64 == x.data_ptr() % 64
    assert torch.equal(single, one)
    results = module["compute"]()
    assert all(torch.equal(result, one * 2.5) for result in results)
