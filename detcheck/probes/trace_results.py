"""The results of a trace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FirstOp:
    """The first op that gave the request other bits in the batch than alone."""

    op: str
    module: str
    step: int
    """Forward pass of the request: 0 is its prefill, n decodes token n."""
    reference_shape: tuple[int, ...]
    """Shape of its result for the request alone."""
    shape: tuple[int, ...]
    """Shape of its result in the batch."""
    rows: int
    rows_differ: int
    """Rows (last dimension) of the request's part of the result."""
    max_ulp: int
    inputs_compared: int
    """Inputs that agree bit for bit; 0 if `indirect`."""
    indirect: bool
    """If true, not all of its tensors could be compared; the input of a later op differed."""


@dataclass(frozen=True, slots=True)
class LayerGrowth:
    """How far a layer's result is from the reference's at the token of divergence."""

    layer: str
    elements: int
    elements_differ: int
    max_ulp: int
    relative: float
    """Norm of the difference over norm of the reference."""


@dataclass(frozen=True, slots=True)
class FlipSide:
    """The best two tokens on one side."""

    token_id: int
    token: str
    runner_up: str
    gap: float
    """Best minus second-best logit."""


@dataclass(frozen=True, slots=True)
class TraceFlip:
    """The token at which the two replays diverge, or the last token compared."""

    position: int
    flipped: bool
    reference: FlipSide
    batch: FlipSide
    max_logit_change: float


@dataclass(frozen=True, slots=True)
class Trace:
    """The first op that differs, if any, and the counts of the comparison."""

    kernels: str
    batch_size: int
    first: FirstOp | None
    layers: tuple[LayerGrowth, ...]
    flip: TraceFlip
    ops_compared: int
    tensors_compared: int
    steps_compared: int
    elapsed_s: float

    @property
    def sentence(self) -> str:
        """The first op that differs, or that none does, in one sentence."""
        kernels = f"under {self.kernels} kernels"
        if self.first is None:
            return f"No op differs {kernels} between alone and a batch of {self.batch_size}."
        step = "the prefill" if self.first.step == 0 else f"decode step {self.first.step}"
        return (
            f"First op that differs {kernels}: {self.first.op} in {self.first.module}, in {step}, "
            f"between alone and a batch of {self.batch_size}."
        )
