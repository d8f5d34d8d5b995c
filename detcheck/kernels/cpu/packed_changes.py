"""What packed weights are told of: a model that is called first, and changes of parameters.

The version counter of a parameter misses steps of some optimizers, and changes through
`parameter.data`. Both are watched while a mode may pack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from detcheck.kernels.cpu.packed_weight import Aliases

if TYPE_CHECKING:
    from detcheck.kernels.cpu.packed import PackedWeights


def reserve_first_model(store: PackedWeights) -> Callable[[], None]:
    """Reserve memory for the first module that is called, as a whole; returns what ends this."""

    def before_forward(module: torch.nn.Module, _: Any) -> None:
        hook.remove()
        store.reserve(
            weight
            for part in module.modules()
            if not isinstance(part, torch.nn.Embedding)
            for weight in part.parameters(recurse=False)
        )

    hook = register_module_forward_pre_hook(before_forward)
    return hook.remove


def watch_changes(store: PackedWeights) -> Callable[[], None]:
    """Drop copies after changes that the version counter misses; returns what ends the watch."""

    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                store.forget(id(weight))

    plain: Any = torch.Tensor.data

    def get_data(weight: torch.nn.Parameter) -> torch.Tensor:
        alias: torch.Tensor = plain.__get__(weight)
        store.aliases.setdefault(weight, Aliases()).add(alias)
        return alias

    def set_data(weight: torch.nn.Parameter, values: torch.Tensor) -> None:
        plain.__set__(weight, values)
        if values is not weight:
            store.forget(id(weight))  # other values may lie at the same address
            store.aliases.setdefault(weight, Aliases()).add(values)

    hook = register_optimizer_step_post_hook(after_step)
    parameter: Any = torch.nn.Parameter
    parameter.data = property(get_data, set_data)

    def remove() -> None:
        hook.remove()
        del parameter.data

    return remove
