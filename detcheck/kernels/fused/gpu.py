"""Fused forms on a GPU: one launch in place of several of the own code, to the same bits.

The host decides how fast a GPU decodes: each launch costs it ten microseconds or more. So a norm, a
gated activation, and the rotary positions of queries and keys are one launch each. Which bits they
have is not assumed but compared, see `proofs.py`. Weights are not packed here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import is_grad_enabled
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F

from detcheck.kernels.fused import proofs
from detcheck.kernels.fused.calls import HOOKS_OF_EVERY_MODULE, LINEAR, Calls, Ops, counter
from detcheck.kernels.fused.proofs import UNTRIED, Launch, ProvenLaunches, same_bits, uncounted
from detcheck.kernels.triton import fused_rows, reduce, rotary
from detcheck.kernels.triton.launch import ALIGNMENT_BYTES

NORMS, ACTIVATIONS, ROTATIONS = ProvenLaunches(), ProvenLaunches(), ProvenLaunches()
"""Launches of each kernel. They outlive a mode."""

PLAIN = (torch.Tensor, torch.nn.Parameter)
_OF_MLP = ("act_fn", "gate_proj", "up_proj", "down_proj")
_stock_silu = F.silu
is_on_gpu: Callable[[torch.Tensor], bool] = attrgetter("is_cuda")
is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled
_is_tracing: Callable[[], bool] = torch._C._is_tracing


def is_plain(x: torch.Tensor) -> bool:
    """True for a strided tensor on a GPU, in inference that nothing watches or changes.

    So: while a mode is on, without gradients, hooks of every module, dispatch or function modes,
    autocast, `torch.func`, tracing or compilation.
    """
    return is_unchanged(x) and not _len_torch_dispatch_stack() and not _len_torch_function_stack()


def is_watched(x: torch.Tensor) -> bool:
    """True if `x` would be plain without the dispatch modes that are on.

    So it is in the first passes of a model under a kernels mode, whose ops are watched. The own
    code runs then. But kinds of operands are tried meanwhile: a CUDA graph may be captured next,
    and while one is captured nothing can be tried.
    """
    modes = _len_torch_dispatch_stack() > 0 and not _len_torch_function_stack()
    return modes and is_unchanged(x)


def is_unchanged(x: torch.Tensor) -> bool:
    """True if `x` is plain, or would be plain without dispatch and function modes."""
    return (
        type(x) is torch.Tensor
        and is_on_gpu(x)
        and not is_grad_enabled()
        and F.linear is LINEAR.function
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()
        and not is_any_autocast_enabled()
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not any(HOOKS_OF_EVERY_MODULE)
        and not _is_tracing()
        and not torch.compiler.is_dynamo_compiling()
    )


class NormOnGpu:
    """RMSNorm of one class in one launch."""

    ops: ClassVar[Ops] = {"reduce": {"aten::mean.dim": 1}}
    """The overrides on a GPU that a call stands for."""

    def __init__(self, own: Any, calls: Calls):
        """`own` is the forward of the class; calls are counted in `calls`."""
        self._own, self._calls = own, calls
        self._count = counter(calls, self.ops)

    def __call__(self, module: Any, x: torch.Tensor) -> torch.Tensor | None:
        """The norm of `x` (…, hidden); None if the own forward must run."""
        plain = is_plain(x)
        weight: Any = module._parameters.get("weight") if plain or is_watched(x) else None
        if type(weight) not in PLAIN or (x.data_ptr() | weight.data_ptr()) % ALIGNMENT_BYTES:
            return None
        epsilon = module.variance_epsilon
        operands = (
            x.shape, x.stride(), x.dtype, x.get_device(), epsilon, type(epsilon),
            weight.shape, weight.stride(), weight.dtype, weight.get_device(),
        )  # fmt: skip
        launch = NORMS.launches.get(operands, UNTRIED)
        if launch is UNTRIED:
            launch = self._first(operands, x, weight, epsilon)
        if launch is None or not plain:
            return None
        self._count()
        out: torch.Tensor = launch(x, weight)[0]
        return out

    def _first(
        self, operands: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: Any
    ) -> Launch | None:
        return NORMS.first(
            operands,
            kind_of_norm(x, weight, epsilon),
            lambda: fused_rows.weighted_norm(x, epsilon),
            lambda: self._is_proven(x, epsilon),
        )

    def _is_proven(self, like: torch.Tensor, epsilon: float) -> bool:
        x, weight = rows_for_proof(1, like), proofs.random(2, like.shape[-1], like=like)
        module = SimpleNamespace(weight=weight, variance_epsilon=epsilon)
        with uncounted(self._calls):
            expected = self._own(module, x)
        return same_bits(fused_rows.weighted_norm(x, epsilon)(x, weight)[0], expected)


def kind_of_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: Any) -> Any:
    """The kind of a norm of `x` (…, hidden), for all shapes; None if it has no kernel."""
    length = x.shape[-1] if x.dim() else 0
    fits = (
        type(epsilon) is float
        and x.dtype in fused_rows.FLOATS
        and length > reduce.SHORT
        and length % fused_rows.MULTIPLE == 0
        and x.numel() > 0
        and x.is_contiguous()
        and (weight.shape, weight.stride()) == ((length,), (1,))
        and (weight.dtype, weight.device) == (x.dtype, x.device)
    )
    return (length, x.dtype, x.get_device(), epsilon) if fits else None


def rows_for_proof(seed: int, like: torch.Tensor) -> torch.Tensor:
    """Random rows of the length that the rows of `like` have."""
    length = like.shape[-1]
    return proofs.random(seed, proofs.ENTRIES // length + 11, length, like=like)


def activated(gate: Any, up: Any) -> torch.Tensor | None:
    """`silu(gate) * up` in one launch; None if the own code must run. `gate` is in plain use."""
    if not type(gate) is type(up) is torch.Tensor or F.silu is not _stock_silu:
        return None
    operands = (
        gate.shape, gate.stride(), gate.dtype, gate.get_device(),
        up.shape, up.stride(), up.dtype, up.get_device(),
    )  # fmt: skip
    launch = ACTIVATIONS.launches.get(operands, UNTRIED)
    if launch is UNTRIED:
        launch = _first_activation(operands, gate, up)
    if launch is None:
        return None
    out: torch.Tensor = launch(gate, up)[0]
    return out


def _try_activation(like: torch.Tensor) -> Any:
    """The kind of gates of this dtype, after it was tried; None if there is no kernel."""
    if like.dtype not in fused_rows.FLOATS:
        return None
    kind = (like.dtype, like.get_device())
    ACTIVATIONS.try_kind(kind, lambda: _activates_alike(like))
    return kind


def _first_activation(operands: Any, gate: torch.Tensor, up: torch.Tensor) -> Launch | None:
    fits = operands[:4] == operands[4:] and gate.numel() > 0 and gate.is_contiguous()
    return ACTIVATIONS.first(
        operands,
        _try_activation(gate) if fits else None,
        lambda: fused_rows.silu_times(gate),
        lambda: _activates_alike(gate),
    )


def _activates_alike(like: torch.Tensor) -> bool:
    """Compare all values of a 16-bit dtype as gates, or many of float32."""
    gate = proofs.random(3, proofs.ENTRIES // 64, 64, like=like)
    if like.element_size() == 2:
        every = torch.arange(1 << 16, device=like.device, dtype=torch.int32).to(torch.int16)
        gate = torch.cat((every.view(like.dtype).view(-1, 64), gate))
    up = proofs.random(4, *gate.shape, like=like)
    return same_bits(fused_rows.silu_times(gate)(gate, up)[0], F.silu(gate) * up)


class MlpOnGpu:
    """The gated MLP of one class, with its activation and the product after it in one launch."""

    def __init__(self) -> None:
        self._silu: Any = None
        """A forward that is known to be that of transformers' SiLU."""

    def __call__(self, module: Any, x: torch.Tensor) -> torch.Tensor | None:
        """The MLP of `x` (…, hidden); None, with nothing computed yet, if the own must run."""
        parts = module._modules
        activation, gate_proj, up_proj, down_proj = map(parts.get, _OF_MLP)
        if None in (gate_proj, up_proj, down_proj) or not self._is_silu(activation):
            return None
        if not is_plain(x):
            if is_watched(x):
                _try_activation(x)
            return None
        if is_changed(activation):
            return None
        gate, up = gate_proj(x), up_proj(x)
        product = activated(gate, up)
        if product is None:
            product = activation(gate) * up
        out: torch.Tensor = down_proj(product)
        return out

    def _is_silu(self, activation: Any) -> bool:
        """True if the class of the module is transformers' SiLU."""
        own = vars(type(activation)).get("forward")
        if own is not self._silu:
            from detcheck.kernels.fused import templates

            if not templates.same_code(own, templates.silu):
                return False
            self._silu = own
        return True


def is_changed(module: Any) -> bool:
    """True if the call of a module runs more or other code than the forward of its class."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or "forward" in vars(module)


def rotation(own: Any) -> Any:
    """A function for the place of `own`, transformers' `apply_rotary_pos_emb`: one launch a call.

    Of calls that it does not serve `own` is called.
    """
    names = own.__globals__
    half = names["rotate_half"]

    @wraps(own)
    def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        if unsqueeze_dim == 1 and names.get("rotate_half") is half:
            if is_plain(q):
                turned = _turned(own, q, k, cos, sin)
                if turned is not None:
                    return turned
            elif is_watched(q):
                _rotation_of(own, q, k, cos, sin)
        return own(q, k, cos, sin, unsqueeze_dim)

    return apply_rotary_pos_emb


def _turned(own: Any, q: torch.Tensor, k: Any, cos: Any, sin: Any) -> Any:
    """Queries and keys with positions; None if the own function must run."""
    launch = _rotation_of(own, q, k, cos, sin)
    return None if launch is None else launch(q, k, cos, sin)


def _rotation_of(own: Any, q: torch.Tensor, k: Any, cos: Any, sin: Any) -> Launch | None:
    """The launch for these operands; None if the own function must run."""
    if not type(k) is type(cos) is type(sin) is torch.Tensor:
        return None
    operands = (
        q.shape, q.stride(), q.dtype, q.get_device(), k.shape, k.stride(), k.dtype, k.get_device(),
        cos.shape, cos.stride(), cos.dtype, cos.get_device(),
        sin.shape, sin.stride(), sin.dtype, sin.get_device(),
    )  # fmt: skip
    launch = ROTATIONS.launches.get(operands, UNTRIED)
    if launch is UNTRIED:
        launch = _first_rotation(operands, own, (q, k, cos, sin))
    return launch


def _first_rotation(
    operands: Any, own: Any, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> Launch | None:
    q, k, cos, _ = given
    fits = operands[8:12] == operands[12:] and rotary.serves(q, k, cos)
    return ROTATIONS.first(
        operands,
        (q.shape[1], k.shape[1], q.shape[3], q.dtype, q.get_device()) if fits else None,
        lambda: rotary.Rotation(q, k, cos),
        lambda: _turns_alike(own, q, k.shape[1]),
    )


def _turns_alike(own: Any, q: torch.Tensor, k_heads: int) -> bool:
    """Compare two requests in the layout of a model: (rows, tokens, heads, dim), transposed."""
    q_heads, dim = q.shape[1], q.shape[3]
    tokens = proofs.ENTRIES // (16 * q_heads * dim) + 3
    query = proofs.random(5, 2, tokens, q_heads, dim, like=q).transpose(1, 2)
    key = proofs.random(6, 2, tokens, k_heads, dim, like=q).transpose(1, 2)
    cos, sin = (proofs.random(seed, 2, tokens, dim, like=q) for seed in (7, 8))
    turned = rotary.Rotation(query, key, cos)(query, key, cos, sin)
    return all(map(same_bits, turned, own(query, key, cos, sin)))
