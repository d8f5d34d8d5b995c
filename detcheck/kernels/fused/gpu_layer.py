"""A decoder layer on a GPU: what attention gives is added and normed in one launch.

All else of the layer runs as its own code calls it, module by module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from detcheck.kernels.fused import gpu
from detcheck.kernels.fused.calls import Calls, counter
from detcheck.kernels.fused.gpu import (
    PLAIN,
    NormOnGpu,
    is_changed,
    is_plain,
    is_watched,
    kind_of_norm,
    rows_for_proof,
)
from detcheck.kernels.fused.norm import FusedNorm
from detcheck.kernels.fused.proofs import UNTRIED, Launch, ProvenLaunches, same_bits, uncounted
from detcheck.kernels.triton import fused_rows
from detcheck.kernels.triton.launch import ALIGNMENT_BYTES

SUMS = ProvenLaunches()
"""Launches of the kernel. They outlive a mode."""
PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def tried_kinds() -> dict[str, dict[Any, str | None]]:
    """By form, every kind of operands that was tried: None, or why the own code serves it."""
    return {
        "norm": gpu.NORMS.faults,
        "norm of a sum": SUMS.faults,
        "activation": gpu.ACTIVATIONS.faults,
        "rotation": gpu.ROTATIONS.faults,
    }


class LayerOnGpu:
    """The decoder layers of one class."""

    def __init__(self, calls: Calls, forms: Mapping[Any, Any]):
        """`forms` are the fused forms of other classes; calls are counted in `calls`."""
        self._calls, self._forms = calls, forms
        self._count = counter(calls, NormOnGpu.ops)

    def __call__(self, layer: Any, x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor | None:
        """The result for `x` (batch, tokens, hidden); None, with nothing computed, if the own code
        must run.

        `given` are the arguments that the layer passes on to its attention.
        """
        first, attention, second, mlp = map(layer._modules.get, PARTS)
        norm = self._forms.get(type(second))
        if None in (first, attention, mlp) or type(norm) is not FusedNorm:
            return None
        if not is_plain(x):
            if is_watched(x):
                self.launch(norm, second, x, x)
            return None
        if type(second).forward is not norm.in_place or is_changed(second):
            return None
        out, _ = attention(hidden_states=first(x), **given)
        launch = self.launch(norm, second, x, out)
        if launch is None:
            x = x + out
            out = second(x)
        else:
            self._count()
            x, out = launch(x, out, second._parameters["weight"])
        result: torch.Tensor = x + mlp(out)
        return result

    def launch(self, norm: Any, module: Any, x: torch.Tensor, y: Any) -> Launch | None:
        """The launch for a sum of `x` and `y`; None if the own code must add and norm them."""
        weight = module._parameters.get("weight")
        if type(y) is not torch.Tensor or type(weight) not in PLAIN:
            return None
        if (x.data_ptr() | y.data_ptr() | weight.data_ptr()) % ALIGNMENT_BYTES:
            return None
        epsilon = module.variance_epsilon
        operands = (
            x.shape, x.stride(), x.dtype, x.get_device(), y.shape, y.stride(), y.dtype,
            y.get_device(), epsilon, type(epsilon), weight.shape, weight.stride(), weight.dtype,
            weight.get_device(),
        )  # fmt: skip
        launch = SUMS.launches.get(operands, UNTRIED)
        if launch is not UNTRIED:
            return launch
        alike = operands[:4] == operands[4:8]
        return SUMS.first(
            operands,
            kind_of_norm(x, weight, epsilon) if alike else None,
            lambda: fused_rows.summed_norm(x, epsilon),
            lambda: self._is_proven(norm.own, x, epsilon),
        )

    def _is_proven(self, own: Any, like: torch.Tensor, epsilon: float) -> bool:
        """Compare with a sum and the norm `own` of it."""
        x, y, weight = rows_for_proof(9, like), rows_for_proof(10, like), rows_for_proof(11, like)
        module = SimpleNamespace(weight=weight[0], variance_epsilon=epsilon)
        summed = x + y
        with uncounted(self._calls):
            expected = own(module, summed)
        found = fused_rows.summed_norm(x, epsilon)(x, y, weight[0])
        return all(map(same_bits, found, (summed, expected)))
