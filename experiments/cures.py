"""The usual cures of nondeterminism; `mitigations.py` measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from detcheck.engines.base import OnTokens
from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.in_process import InProcessEngine
from detcheck.engines.partial import PartialCompletion
from detcheck.engines.static import StaticEngine
from detcheck.kernels.settings import BATCH_INVARIANT, FULLY_INVARIANT, STOCK
from detcheck.models import LoadedModel
from detcheck.traffic import Trial


class OneAtATime(ContinuousEngine):
    """Requests wait for each other: no batch is ever larger than 1."""

    def generate(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Answer the trial's requests one after the other."""
        alone = (replace(trial, requests=(request,)) for request in trial.requests)
        return [super(OneAtATime, self).generate(one, on_tokens)[0] for one in alone]


class FixedBatch(StaticEngine):
    """Every forward pass has the same shape: free rows are filled with copies of a request."""

    rows = 16

    def generate(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Answer the trial's requests in full batches, in the first rows of each."""
        answers: list[PartialCompletion] = []
        for start in range(0, len(trial.requests), self.rows):
            part = trial.requests[start : start + self.rows]
            copies = (replace(part[0], is_probe=False),) * (self.rows - len(part))
            full = replace(trial, requests=(*part, *copies))
            answers += super().generate(full, on_tokens)[: len(part)]
        return answers


class FixedPlace(FixedBatch):
    """The same, with each request in the first row of a batch of its own."""

    def generate(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Answer the trial's requests one after the other, each in a full batch."""
        alone = (replace(trial, requests=(request,)) for request in trial.requests)
        return [super(FixedPlace, self).generate(one, on_tokens)[0] for one in alone]


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """PyTorch's own switch, which picks ops that repeat exactly for equal inputs."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class UpcastLinear(nn.Module):
    """A linear layer that keeps its weight in 16 bits and computes in float32."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        # As a buffer: the module's dtype, by which the cache is made, is that of its parameters.
        self.register_buffer("kept", linear.weight.detach().clone())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, K) to (…, N), both in float32."""
        kept: torch.Tensor = self.get_buffer("kept")
        return F.linear(x, kept.float(), self.bias)


def computing_in_float32(loaded: LoadedModel) -> LoadedModel:
    """The model with 16-bit weights in its linear layers, and float32 everywhere else."""
    model = loaded.model
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    linear = {
        name: UpcastLinear(layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and id(layer.weight) not in embeddings
    }
    model.float()
    for name, layer in linear.items():
        model.set_submodule(name, layer)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.float()
    return replace(loaded, dtype=torch.float32)


@dataclass(frozen=True)
class Cure:
    """One way to get the same answer under any load."""

    name: str
    kernels: str = STOCK
    dtype: Literal["auto", "float32"] = "auto"
    engine: type[InProcessEngine] = ContinuousEngine
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    prepare: Callable[[LoadedModel], LoadedModel] | None = None
    """Changes a freshly loaded model."""
    slow: bool = False
    """Answering takes a whole batch for each request: fewer completions, timed at one load."""


CURES = (
    Cure("stock"),
    Cure("deterministic algorithms", around=deterministic_algorithms),
    Cure("one request at a time", engine=OneAtATime),
    Cure("a fixed batch of 16", engine=FixedBatch),
    Cure("the same, always in row 0", engine=FixedPlace, slow=True),
    Cure("16-bit weights, float32 compute", prepare=computing_in_float32),
    Cure("float32 throughout", dtype="float32"),
    Cure("batch-invariant matmul alone", "batch-invariant:matmul"),
    Cure("batch-invariant attention alone", "batch-invariant:attention"),
    Cure("batch-invariant", BATCH_INVARIANT),
    Cure("fully-invariant", FULLY_INVARIANT),
)
