"""A decoder layer whose norms, attention and MLP all have fused forms: they are called directly.

What its calls need is found once, and looked at before each call: somebody may have changed it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch

from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.cpu.packed_weight import PackedWeight, Source
from detcheck.kernels.fused.attention import AttentionOperands, FusedAttention
from detcheck.kernels.fused.calls import Calls, Forward, counter, forms_on_gpu, is_plain
from detcheck.kernels.fused.facts import Facts, facts_of
from detcheck.kernels.fused.mlp import SILU, FusedMlp, MlpOperands, gated, silu_of
from detcheck.kernels.fused.norm import FusedNorm, fits, float32, normed
from detcheck.kernels.fused.projections import Projections
from detcheck.kernels.fused.steps import Step, step_of

_PARTS = {
    "input_layernorm": FusedNorm,
    "self_attn": FusedAttention,
    "post_attention_layernorm": FusedNorm,
    "mlp": FusedMlp,
}
_version_of, _address_of = attrgetter("_version"), torch.Tensor.data_ptr
_given_of = attrgetter("given")


class Ready:
    """One layer, with what its calls need as long as nothing changes."""

    def __init__(
        self,
        layer: torch.nn.Module,
        form: FusedAttention,
        attention: AttentionOperands,
        mlp: MlpOperands,
    ):
        self.modules: tuple[Any, ...] = tuple(layer._modules[name] for name in _PARTS)
        """The norm before attention, attention, the norm after it, and the MLP."""
        self.form, self.attention, self.mlp = form, attention, mlp
        self.silu = silu_of(self.modules[3])
        """The activation, if it is a kernel of ours; None: the MLP's module."""
        self._settings = attention.qkv.settings
        both = ((attention.layers, attention.qkv, attention.out), (mlp.layers, mlp.both, mlp.down))
        self._facts: Facts = facts_of(layer, _PARTS) + facts_of(self.modules[3], ("act_fn",))
        self._facts += attention.layers.facts + mlp.layers.facts
        sources: list[Source] = []
        self._weights: list[torch.Tensor] = []
        for layers, together, last in both:
            self._facts += _copies(layers, together, last)
            self._weights += (*layers.weights, layers.last.weight)
            sources += (*together.sources, *last.sources)
        self._aliases = [source.aliases for source in sources]
        self._versions = [source.version for source in sources]
        self._addresses = [source.address for source in sources]
        self._harmless = [source.harmless for source in sources]

    def fits(self, x: torch.Tensor) -> bool:
        """True if `x` can be the layer's input: (batch, tokens, hidden), with these norms."""
        qkv = self.attention.qkv
        epsilons = (self.modules[0].variance_epsilon, self.modules[2].variance_epsilon)
        plain = type(epsilons[0]) is type(epsilons[1]) is float
        return plain and x.dim() == 3 and x.shape[2] == qkv.inner and x.dtype == qkv.packed.dtype

    def holds(self, settings: tuple[object, ...]) -> bool:
        """False if a module, a weight, a hook, a copy or a setting has changed."""
        weights = self._weights
        if (
            [*map(_version_of, weights)] != self._versions
            or [*map(_address_of, weights)] != self._addresses
            or [*map(_given_of, self._aliases)] != self._harmless
        ):
            return False
        attention, mlp = self.attention, self.mlp
        return (
            self._settings == settings
            and not self.form.is_patched()
            and attention.layers.biases_fit(attention.qkv, attention.out)
            and mlp.layers.biases_fit(mlp.both, mlp.down)
            and self._facts.hold()
        )


def _copies(layers: Projections, together: PackedWeight, last: PackedWeight) -> Facts:
    """The store has these copies."""
    key = id(layers.last.weight)
    entries = ((STORE.side_by_side, layers.key, together), (STORE.copies, key, last))
    return Facts(entries)


def _layer_on_gpu(calls: Calls, forms: Mapping[Any, Any]) -> Any:
    """The form on a GPU; None if this machine has no kernels for one."""
    if forms_on_gpu() is None:
        return None
    from detcheck.kernels.fused.gpu_layer import LayerOnGpu

    return LayerOnGpu(calls, forms)


class FusedLayer:
    """The fused form of one class."""

    def __init__(self, own: Any, calls: Calls, forms: Mapping[Any, Any]):
        """`own` is the forward of the class; `forms` are the fused forms of other classes.

        Fused calls are counted in `calls`.
        """
        self._own = own
        self.in_place: Forward = own
        """The forward that the class has now."""
        self._forms = forms
        norm = FusedNorm.ops
        self._count = counter(calls, norm, FusedAttention.ops, norm, FusedMlp.ops)
        self._on_gpu = _layer_on_gpu(calls, forms)
        self._count_silu = counter(calls, SILU)
        self._ready: weakref.WeakKeyDictionary[torch.nn.Module, Ready] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Keep no packed copies; what the next calls need is found again."""
        self._ready.clear()

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
            if not layer.training and is_plain(x) and fits(x):
                given = {"position_ids": position_ids, "use_cache": use_cache, **kwargs}
                computed = self._compute(layer, x, position_embeddings, caches, given)
                if computed is not None:
                    return computed
            if self._on_gpu is not None:
                given = {"attention_mask": attention_mask, "position_ids": position_ids,
                         "past_key_values": past_key_values, "use_cache": use_cache,
                         "position_embeddings": position_embeddings, **kwargs}  # fmt: skip
                out: torch.Tensor | None = self._on_gpu(layer, x, given)
                if out is not None:
                    return out
            args = (attention_mask, position_ids, past_key_values, use_cache, position_embeddings)
            return self._own(layer, x, *args, **kwargs)

        return forward

    def _compute(
        self, layer: Any, x: torch.Tensor, positions: Any, caches: Any, given: dict[str, Any]
    ) -> torch.Tensor | None:
        """The result for a plain `x`; None, with nothing computed yet, if the own must run."""
        found = self._look_up(layer, x, positions)
        if found is None:
            return None
        ready, step = found
        first, module, second, mlp = ready.modules
        out = normed(x, first.weight, float32(x.shape[2], first.variance_epsilon))
        if out.dtype != x.dtype:  # that of the norm's weight is a wider one
            return None
        self._count()
        out, _ = ready.form.compute(module, out, ready.attention, step, caches, given)
        x = x + out
        out = normed(x, second.weight, float32(x.shape[2], second.variance_epsilon))
        if out.dtype != x.dtype:
            computed: torch.Tensor = x + mlp(out)
            return computed
        if ready.silu is not None:
            self._count_silu()
        return gated(ready.silu or mlp.act_fn, out, ready.mlp).add_(x)

    def _look_up(self, layer: Any, x: torch.Tensor, positions: Any) -> tuple[Ready, Step] | None:
        """What a call for a plain `x` needs; None if the own must run."""
        module = layer._modules.get("self_attn")
        known = type(self._forms.get(type(module))) is FusedAttention
        step = step_of(positions, module.layer_idx, x, module.head_dim) if known else None
        if step is None:
            return None
        ready, settings = self._ready.get(layer), numerics()
        if ready is None or not ready.holds(settings):
            ready = self._prepare(layer, x, step, settings)
        return (ready, step) if ready is not None and ready.fits(x) else None

    def _prepare(
        self, layer: torch.nn.Module, x: torch.Tensor, step: Step, settings: tuple[object, ...]
    ) -> Ready | None:
        """Look at everything anew; None if the layer is not to be served."""
        self._ready.pop(layer, None)
        modules: list[Any] = [layer._modules.get(name) for name in _PARTS]
        forms: list[Any] = [self._forms.get(type(each)) for each in modules]
        if any(type(form) is not part for form, part in zip(forms, _PARTS.values(), strict=True)):
            return None
        places = zip(modules, forms, strict=True)
        if any(type(module).forward is not form.in_place for module, form in places):
            return None
        attention = forms[1].operands(modules[1], x, step, settings)
        mlp = forms[3].operands(modules[3], x, settings)
        if attention is None or mlp is None:
            return None
        ready = Ready(layer, forms[1], attention, mlp)
        if not ready.holds(settings):
            return None
        self._ready[layer] = ready
        return ready
