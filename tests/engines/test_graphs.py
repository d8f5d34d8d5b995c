"""Decoding steps captured as graphs and replayed, on a stand-in for CUDA's graphs.

The stand-in notes every op of a capture with its operands. A replay runs the noted ops again into
the same memory, and no Python of the model. As on a GPU, reading a value in a capture is an error.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from asking import ask, conditions_of
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.engines import continuous
from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.graphs import LastLogits
from detcheck.errors import UsageError
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import plan_trials

runner = pytest.importorskip("transformers.generation.continuous_batching.model_runner")
initialization = pytest.importorskip("transformers.generation.continuous_batching.initialization")
if not hasattr(runner, "create_accelerator_graph"):
    pytest.skip("this transformers makes its graphs elsewhere", allow_module_level=True)

READS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"}
KERNELS = ("stock", "batch-invariant:matmul")
"""On the CPU the other kernels read lengths, and cannot be captured."""


class Graph(TorchDispatchMode):
    """In place of `torch.cuda.CUDAGraph` and of the context that captures into it."""

    made: list[Graph]

    def __init__(self) -> None:
        super().__init__()
        self._ops: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self.made.append(self)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function._schema.name.partition("::")[2] in READS:
            raise RuntimeError(f"{function._schema.name} while a stream is capturing")
        out = function(*args, **(kwargs or {}))
        self._ops.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, out in self._ops:
            again = function(*args, **kwargs)
            for kept, new in zip(tensors(out), tensors(again), strict=True):
                if (
                    kept.data_ptr() != new.data_ptr()
                ):  # of a view, and of an op in place, they agree
                    kept.copy_(new)

    def reset(self) -> None:
        self._ops.clear()


def tensors(result: Any) -> list[torch.Tensor]:
    results = result if isinstance(result, list | tuple) else (result,)
    return [x for x in results if isinstance(x, torch.Tensor)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that were captured, as on a machine that can."""
    made: list[Graph] = []
    monkeypatch.setattr(Graph, "made", made, raising=False)
    monkeypatch.setattr(initialization, "get_accelerator_graph_name", lambda: "Graph")
    monkeypatch.setattr(runner, "get_memory_pools", lambda: (None, None))
    monkeypatch.setattr(runner, "memory_pool_context", lambda pool: nullcontext())
    monkeypatch.setattr(runner, "create_accelerator_graph", Graph)
    monkeypatch.setattr(
        runner, "accelerator_graph_capture_context", lambda graph, stream, pool: graph
    )
    monkeypatch.setattr(continuous, "require_graphs", lambda device: None)
    return made


def asked(cuda_graphs: str, kernels: tuple[str, ...] = KERNELS, **changes: Any) -> Any:
    options = {
        "prompts": ("What is the sea?",), "kernels": kernels, "batch_sizes": (1, 5),
        "completions": 6, "max_new_tokens": 12, "traffic": "mixed", "cuda_graphs": cuda_graphs,
    }  # fmt: skip
    return ask(**(options | changes))


def answers(engine: ContinuousEngine) -> list[Any]:
    found = []
    for condition in conditions_of(engine.experiment, engine.target):
        for trial in plan_trials(engine.experiment, condition):
            result = engine.run_trial(trial)
            found += [(condition.kernels, each.token_ids) for _, each in result.completions]
    return found


def opened(loaded: LoadedModel, cuda_graphs: str, **changes: Any) -> ContinuousEngine:
    both = asked(cuda_graphs, **changes)
    return ContinuousEngine(loaded, both.experiment, both.target)


@pytest.mark.sweep
def test_replayed_steps_give_the_same_answers(tiny_model: LoadedModel, graphs: list[Graph]) -> None:
    """Under each kernels, and for requests of several lengths; most steps are replays."""
    expected = answers(opened(tiny_model, "off"))
    assert not graphs
    engine = opened(tiny_model, "on")
    assert answers(engine) == expected
    assert sum(graph.replays for graph in graphs) > 2 * len(graphs) > 0
    assert engine.proof(KERNELS[1]).missing == ()


def test_a_graph_of_other_kernels_is_not_replayed(
    tiny_model: LoadedModel, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: with one loop for all kernels, the mode replays steps of stock kernels."""

    def decoding_captured() -> int:
        graphs.clear()
        engine = opened(tiny_model, "on", batch_sizes=(5,), traffic="alone")
        answers(engine)
        return len(graphs)

    captured = decoding_captured()
    monkeypatch.setattr(ContinuousEngine, "_loop_key", lambda self, state, kernels: state)
    assert captured == 2 * decoding_captured()


def test_the_same_capture_catches_tokens_that_are_chosen_inside(
    tiny_model: LoadedModel, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they were chosen in place of transformers' sampling. A user reads what to do."""

    def read(self: LastLogits, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        keep(self, scores, output_ids)
        scores.argmax().item()

    keep = LastLogits.keep
    monkeypatch.setattr(LastLogits, "keep", read)
    with pytest.raises(UsageError, match="cannot be captured in a CUDA graph"):
        answers(opened(tiny_model, "on"))


@pytest.mark.sweep
def test_logits_that_are_kept_elsewhere_would_be_those_of_an_earlier_step(
    tiny_model: LoadedModel, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay runs no Python, so it must write to the place that is read after it."""

    def keep(self: LastLogits, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        self._logits = scores[0].clone()

    expected = answers(opened(tiny_model, "off"))
    monkeypatch.setattr(LastLogits, "keep", keep)
    monkeypatch.setattr(LastLogits, "take", lambda self, rows: self._logits[:rows])
    assert answers(opened(tiny_model, "on")) != expected


@pytest.mark.sweep
def test_an_observer_sees_the_ops_of_every_step(
    tiny_model: LoadedModel, graphs: list[Graph]
) -> None:
    """Hooks on the model do not run in a replay, so no step is one while somebody observes."""
    engine = opened(tiny_model, "on")
    replays = sum(graph.replays for graph in graphs)
    with engine.observed_by(Observer()):
        answers(engine)
    assert sum(graph.replays for graph in graphs) == replays


class Observer:
    """Looks at nothing."""

    def around(self, forward_pass: Any) -> None:
        """See `PassObserver`."""

    def scored(self, forward_pass: Any, scores: torch.Tensor, chosen: Any) -> None:
        """See `PassObserver`."""


def test_graphs_need_a_gpu_and_continuous_batching(tiny_model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="CUDA graphs need a GPU, and the model is on cpu"):
        opened(tiny_model, "on")
    with pytest.raises(UsageError, match="static captures no CUDA graphs"):
        InProcess(engine="static", cuda_graphs="on")
