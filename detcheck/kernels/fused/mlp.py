"""The gated MLP: the products by `gate_proj` and `up_proj` are one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from detcheck.kernels.cpu.linear import multiply
from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.packed_weight import PackedWeight
from detcheck.kernels.cpu.pointwise import KERNELS
from detcheck.kernels.fused.calls import Calls, Forward, Ops, counter, forms_on_gpu, is_plain
from detcheck.kernels.fused.projections import Projections, ProjectionsOfModules, copies_of, fits


@dataclass(frozen=True, slots=True)
class MlpOperands:
    """What a fused call needs beside its input."""

    layers: Projections
    both: PackedWeight
    """Of the gate and the other layer with the same input."""
    down: PackedWeight


class FusedMlp:
    """The fused form of one class."""

    ops: ClassVar[Ops] = {"matmul": {"aten::linear": 3}}
    """The overrides that a call stands for, beside the activation."""

    def __init__(self, own: Any, calls: Calls):
        """`own` is the forward of the class; fused calls are counted in `calls`."""
        self._own = own
        self.in_place: Forward = own
        """The forward that the class has now."""
        self._count = counter(calls, self.ops)
        gpu = forms_on_gpu()
        self._on_gpu = None if gpu is None else gpu.MlpOnGpu()
        self._known = ProjectionsOfModules(("gate_proj", "up_proj"), last="down_proj")

    def forward(self) -> Forward:
        """The forward to put in place of the class's own."""

        def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
            found = self.operands(module, x, numerics()) if is_plain(x) else None
            if found is not None:
                self._count()
                return gated(module.act_fn, x, found)
            if self._on_gpu is not None:
                out: torch.Tensor | None = self._on_gpu(module, x)
                if out is not None:
                    return out
            computed: torch.Tensor = self._own(module, x)
            return computed

        return forward

    def operands(
        self, module: Any, x: torch.Tensor, settings: tuple[object, ...]
    ) -> MlpOperands | None:
        """What a call for a plain `x` (…, hidden) needs; None if the own forward must run."""
        layers = self._known.find(module)
        copies = None if layers is None else copies_of(layers, x, settings)
        return None if layers is None or copies is None else MlpOperands(layers, *copies)


SILU: Ops = {"pointwise": {"aten::silu": 1}}
"""The override that `silu_of` stands for."""


def silu_of(module: Any) -> Any:
    """Our kernel, if the activation of an MLP is transformers' SiLU; else None."""
    from detcheck.kernels.fused import templates

    own = vars(type(module.act_fn)).get("forward")
    return KERNELS["silu"] if templates.same_code(own, templates.silu) else None


def gated(activation: Any, x: torch.Tensor, operands: MlpOperands) -> torch.Tensor:
    """The MLP of a plain `x` (…, hidden)."""
    layers, both, down = operands.layers, operands.both, operands.down
    gate, up = torch.split_with_sizes(multiply(x, both, layers.bias), both.widths, -1)
    gate = activation(gate.contiguous())
    if gate.shape != up.shape or not fits(gate, down):
        computed: torch.Tensor = layers.last(gate * up)
        return computed
    rows, bias = x.numel() // both.inner, layers.last.bias
    padded = down.classes[bias is not None].padded_rows(1) if rows == 1 else None
    if not padded or padded == 1:
        return multiply(gate * up, down, bias)
    # The product of one row needs several: all are made at once.
    wide = gate.view(1, -1).expand(padded, -1) * up.view(1, -1)
    return multiply(wide, down, bias)[:1].view(*x.shape[:-1], -1)
