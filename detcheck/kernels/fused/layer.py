"""A decoder layer whose norms, attention and MLP all have fused forms: they are called directly.

So nobody asks five times whether the call is plain, and no module is called through its hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch

from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.fused.attention import FusedAttention
from detcheck.kernels.fused.mlp import FusedMlp
from detcheck.kernels.fused.norm import FusedNorm, fits
from detcheck.kernels.fused.unit import HOOKS, Forward, is_plain

Fused = FusedNorm | FusedMlp | FusedAttention
_KINDS = {
    "input_layernorm": FusedNorm,
    "self_attn": FusedAttention,
    "post_attention_layernorm": FusedNorm,
    "mlp": FusedMlp,
}


class Parts:
    """The parts of one layer, as they were when it was first served."""

    def __init__(self, modules: dict[str, Any], forms: list[Any]):
        self._modules = tuple((name, each, each.__dict__) for name, each in modules.items())
        self._hooks = tuple(getattr(each, kind) for each in modules.values() for kind in HOOKS)
        self.modules = tuple(modules.values())
        self.input_norm: FusedNorm = forms[0]
        self.attention: FusedAttention = forms[1]
        self.other_norm: FusedNorm = forms[2]
        self.mlp: FusedMlp = forms[3]

    def are_intact(self, layer: torch.nn.Module) -> bool:
        """True if the layer has these parts, without hooks."""
        children = layer._modules
        for name, part, attributes in self._modules:
            if children[name] is not part or "forward" in attributes:
                return False
        return not any(self._hooks)


class FusedLayer:
    """The fused form of one class."""

    def __init__(self, own: Any, forms: Mapping[Any, Any]):
        """`own` is the forward of the class; `forms` are the fused forms of other classes."""
        self._own = own
        self._forms = forms
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, Parts] = weakref.WeakKeyDictionary()

    def forward(self) -> Forward:
        """The forward to put in place of the class's own."""

        def forward(
            layer: Any,
            hidden_states: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            use_cache: bool | None = False,
            position_embeddings: Any = None,
            **kwargs: Any,
        ) -> Any:
            x, caches = hidden_states, (attention_mask, past_key_values)
            if is_plain(x) and fits(x) and not layer.training:
                given = {"position_ids": position_ids, "use_cache": use_cache, **kwargs}
                computed = self._compute(layer, x, position_embeddings, caches, given)
                if computed is not None:
                    return computed
            args = (attention_mask, position_ids, past_key_values, use_cache, position_embeddings)
            return self._own(layer, x, *args, **kwargs)

        return forward

    def _compute(
        self, layer: Any, x: torch.Tensor, positions: Any, caches: Any, given: dict[str, Any]
    ) -> torch.Tensor | None:
        """The result for a plain `x`; None, with nothing computed yet, if the own must run."""
        parts = self._known.get(layer)
        if parts is None or not parts.are_intact(layer):
            parts = self._find(layer)
        if parts is None:
            return None
        settings = numerics()
        first, attention, second, mlp = parts.modules
        at_attention = parts.attention.operands(attention, x, positions, settings)
        at_mlp = parts.mlp.operands(mlp, x, settings)
        if at_attention is None or at_mlp is None:
            return None
        normed = parts.input_norm.compute(first, x)
        out, _ = parts.attention.compute(attention, normed, at_attention, caches, given)
        x = x + out
        return parts.mlp.compute(mlp, parts.other_norm.compute(second, x), at_mlp).add_(x)

    def _find(self, layer: torch.nn.Module) -> Parts | None:
        self._known.pop(layer, None)
        modules = {name: layer._modules.get(name) for name in _KINDS}
        forms = [self._forms.get(type(each)) for each in modules.values()]
        if any(type(form) is not kind for form, kind in zip(forms, _KINDS.values(), strict=True)):
            return None
        parts = Parts(modules, forms)
        if not parts.are_intact(layer):
            return None
        self._known[layer] = parts
        return parts
