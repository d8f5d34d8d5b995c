"""The tracer: a planted op is named, none under invariant kernels; bad input is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Asked, ask
from recorded import record
from sweeps import few

from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.in_process import InProcessEngine
from detcheck.engines.passes import Extent, RequestPlace
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.engines.static import StaticEngine
from detcheck.errors import UsageError
from detcheck.kernels.cpu.stock import stock_kernel
from detcheck.models import LoadedModel
from detcheck.probes import trace as trace_module
from detcheck.probes.cutting import cut
from detcheck.probes.recorder import ComparingRecorder, ReferenceRecorder
from detcheck.probes.replay import Step
from detcheck.probes.trace import subject_of_prompt, subject_of_run, trace
from detcheck.rundir import Run
from detcheck.traffic import Trial

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}
PROMPT = "What is the sea?"
INVARIANT = "batch-invariant:matmul+attention"
"""All families of the tiny model except the activations, on which a fault is planted."""


def experiment(**changes: Any) -> Asked:
    defaults = {
        "prompts": (PROMPT,),
        "batch_sizes": (1, 3),
        "completions": 6,
        "max_new_tokens": 6,
        "kernels": (INVARIANT,),
    }
    return ask(**(defaults | changes))


@pytest.fixture(autouse=True)
def on_the_tiny_model(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes traces replay with the tiny model, whichever model the experiment names."""
    replay_with(tiny_model, monkeypatch)


def replay_with(tiny_model: LoadedModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        trace_module,
        "open_engine",
        lambda asked, target: ENGINES[target.engine](tiny_model, asked, target),
    )


@contextmanager
def planted_silu(change: float) -> Iterator[None]:
    """Changes the last element of silu if its input has more than the request's own rows."""
    stock = stock_kernel("silu")
    library = torch.library.Library("aten", "IMPL")

    def silu(x: torch.Tensor) -> torch.Tensor:
        out = stock(x)
        tokens = x.numel() // x.shape[-1]
        if tokens not in (1, len(PROMPT)):
            out[..., -1] += change * (1 + out[..., -1].abs())
        return out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("silu", silu, "CPU")
    try:
        yield
    finally:
        library._destroy()


@few("engine", ENGINES)
@few("traffic", ["alone", "mixed"])
def test_a_planted_op_is_named(engine: str, traffic: str) -> None:
    with planted_silu(1e-6):
        found = trace(subject_of_prompt(*experiment(engine=engine, traffic=traffic)))
    first = found.first
    assert first is not None
    assert (first.op, first.module) == ("aten::silu", "model.layers.0.mlp.act_fn")
    assert first.step == 0
    assert first.rows_differ == first.rows == len(PROMPT)
    assert first.reference_shape == (1, len(PROMPT), 1536)
    assert first.shape != first.reference_shape
    assert first.max_ulp > 0
    assert first.inputs_compared == 1
    assert not first.indirect


@few("engine", ENGINES)
@few("traffic", ["alone", "mixed"])
def test_no_op_is_named_under_invariant_kernels(engine: str, traffic: str) -> None:
    asked = experiment(engine=engine, traffic=traffic, kernels=("batch-invariant",))
    found = trace(subject_of_prompt(*asked))
    assert found.first is None
    assert found.layers == ()
    assert found.ops_compared > 100
    assert found.steps_compared == asked.experiment.max_new_tokens
    assert not found.flip.flipped
    assert found.flip.max_logit_change == 0


@few("engine", ENGINES)
def test_stock_kernels_are_caught(engine: str) -> None:
    """In float32 every product of one row differs from that of three."""
    found = trace(subject_of_prompt(*experiment(engine=engine, kernels=("stock",))))
    assert found.first is not None
    assert found.first.op in ("aten::linear", "aten::scaled_dot_product_attention")
    assert [layer.layer for layer in found.layers] == ["model.layers.0", "model.layers.1"]
    assert found.layers[-1].elements_differ > 0
    assert 0 < found.layers[-1].relative < 1e-3
    assert found.flip.max_logit_change > 0


def test_an_op_whose_inputs_are_too_large_to_compare_is_still_named() -> None:
    step = Step(0, RequestPlace((Extent(1, 3, 0),), row=0, last_token=0, score_row=0))
    reference = ReferenceRecorder(torch.nn.Module(), 1)
    comparison = ComparingRecorder(torch.nn.Module(), reference)
    own = torch.randn(1, 8)
    batch = torch.cat([own * 1.001, torch.randn(2, 8)])
    first, second = ("mlp", "aten::mm", 0), ("", "aten::add", 0)
    reference.after(step, first, (None,), own)
    reference.after(step, second, reference.before(step, [own]), own * 2)
    comparison.after(step, first, [torch.zeros(3, 4)], batch)
    comparison.after(step, second, [batch], batch * 2)
    assert comparison.found is not None
    assert (comparison.found.key, comparison.found.indirect) == (first, True)


def diverging_run(path: Path, loaded: LoadedModel, engine: str) -> Run:
    asked = experiment(engine=engine)
    with planted_silu(40):
        return record(path, ENGINES[engine](loaded, *asked), *asked)


@few("engine", ENGINES)
def test_a_runs_divergence_is_replayed_to_its_token(
    engine: str, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    run = diverging_run(tmp_path / "run", tiny_model, engine)
    subject = subject_of_run(run)
    with planted_silu(40):
        found = trace(subject)
    assert found.first is not None
    assert found.first.op == "aten::silu"
    assert found.flip.flipped
    assert found.flip.position == subject.num_tokens - 1
    assert found.flip.reference.token_id != found.flip.batch.token_id
    assert trace(subject, "batch-invariant").first is None


@pytest.mark.sweep
@few("engine", ENGINES)
def test_a_sampled_run_is_replayed_with_its_seeds(
    engine: str, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    """Both replays draw by the request's own seed, so they diverge only at the planted op."""
    asked = experiment(engine=engine, temperature=1.0, seeds=(5, 6), completions=6)
    with planted_silu(40):
        run = record(tmp_path / "run", ENGINES[engine](tiny_model, *asked), *asked)
        subject = subject_of_run(run)
        found = trace(subject)
    assert subject.trial.requests[subject.request].seed in (5, 6)
    assert found.first is not None
    assert found.first.op == "aten::silu"
    assert found.flip.flipped
    assert found.flip.position == subject.num_tokens - 1
    assert not trace(subject).flip.flipped, "without the fault the samples are equal"


def test_a_run_without_divergence_is_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    asked = experiment()
    run = record(tmp_path / "run", ContinuousEngine(tiny_model, *asked), *asked)
    with pytest.raises(UsageError, match="No answers diverge"):
        subject_of_run(run)


@pytest.mark.sweep
def test_a_warm_prefix_cache_is_warm_in_both_replays() -> None:
    """Of 97 tokens 96 come from the cache, so that alone the prefill has one row."""
    prompt = (
        "The tide turned before dawn, and nobody on the pier had seen the last boat go out. " * 2
    )
    asked = experiment(prompts=(prompt[:97],), prefix_cache=("warm",), chat_template=False)
    with planted_silu(1e-6):
        found = trace(subject_of_prompt(*asked))
    assert found.first is not None
    assert (found.first.op, found.first.step) == ("aten::silu", 0)
    assert found.first.reference_shape == (1, 1, 1536)
    assert trace(subject_of_prompt(*asked)).first is None, "the twin, without the fault"


class Places(ScriptedEngine):
    """Another answer from a warm prefix cache; the same in batches of three if `loaded` is true."""

    def __init__(self, *, loaded: bool):
        super().__init__()
        self.loaded = loaded

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        warm = trial.condition.placement == "warm cache"
        planted = Planted(2, 1, kernels=INVARIANT, min_batch_size=3 if self.loaded else 1)
        return ScriptedEngine([planted] if warm else []).run_trial(trial, on_tokens)


@pytest.mark.parametrize("loaded", [True, False])
def test_answers_that_differ_between_cold_and_warm_only_are_refused(
    loaded: bool, tmp_path: Path
) -> None:
    asked = experiment(prefix_cache=("cold", "warm"))
    run = record(tmp_path / "run", Places(loaded=loaded), *asked)
    if loaded:
        condition = subject_of_run(run).trial.condition
        assert (condition.batch_size, condition.placement) == (3, "warm cache")
        return
    with pytest.raises(UsageError, match="only between a cold and a warm prefix cache, and a"):
        subject_of_run(run)


def test_a_scripted_run_has_no_ops(planted_run: Callable[..., Run]) -> None:
    with pytest.raises(UsageError, match="has no ops to trace"):
        subject_of_run(planted_run())


@pytest.mark.sweep
@few("engine", ENGINES)
def test_a_trace_leaves_the_model_as_it_was(engine: str, tiny_model: LoadedModel) -> None:
    asked = experiment(engine=engine)
    trace(subject_of_prompt(*asked))
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in tiny_model.model.modules()
    )
    replayed: InProcessEngine = ENGINES[engine](tiny_model, *asked)
    subject = subject_of_prompt(*asked)
    assert len(replayed.run_trial(subject.trial).completions) == 3


X = torch.arange(2 * 12 * 4).view(2, 12, 4)


@pytest.mark.parametrize(
    ("x", "alone", "extents", "expected"),
    [
        (X, (1, 12, 4), (Extent(1, 2, 1),), X[1:]),
        (X[:1], (1, 3, 4), (Extent(1, 4, 0), Extent(3, 12, 6)), X[:1, 6:9]),
        (X.view(24, 4), (12, 4), (Extent(1, 2, 1), Extent(12, 24, 12)), X.view(24, 4)[12:]),
        (X, (1, 3, 4), (Extent(1, 2, 0), Extent(3, 12, 0)), X[:1, :3]),
        (X[:1], (1, 5, 4), (Extent(3, 12, 6),), None),
        (X, (2, 12, 4), (Extent(1, 2, 1),), None),
        (X[:1], (1, 2, 2), (Extent(1, 12, 7),), X[:1, 7:8]),
    ],
)
def test_the_requests_part_is_cut_out(x: Any, alone: Any, extents: Any, expected: Any) -> None:
    part = cut(x, alone, extents)
    assert (part is None) == (expected is None)
    if expected is not None:
        assert part is not None
        assert torch.equal(part, expected)
