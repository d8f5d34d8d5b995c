"""Batch-invariant experts: one implementation of transformers', whatever the model asks for.

transformers has several implementations of a mixture's experts. Its grouped and batched products
give a token other bits if the other tokens choose other experts. On the CPU the loop (`eager`)
computes an expert's tokens by linear layers, which the mode makes independent of the number of
tokens. It adds a token's experts in the order of their numbers, whatever the others chose. On a GPU
the grouped implementation runs, whose product has a kernel of ours (`triton/grouped.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

EXPERTS_OP = "transformers::experts"
LOOP_NAME = "eager"
"""The name of the loop in a model's config; transformers has no entry for it in its table."""


def experts(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    """transformers' interface for experts, by the loop of their class or grouped on a GPU.

    `module` holds the experts; the arguments are those of its forward pass: hidden states
    (tokens, hidden), the indices of each token's experts (tokens, k) and their weights (tokens, k).
    """
    hidden_states = args[0] if args else kwargs["hidden_states"]
    if hidden_states.is_cuda:
        from detcheck.kernels.triton.experts import grouped_implementation

        grouped = grouped_implementation(hidden_states)
        if grouped is not None:
            return grouped(module, *args, **kwargs)
    forward: Any = type(module).forward
    result: torch.Tensor = forward.__wrapped__(module, *args, **kwargs)
    return result


def put_in_table(entry: Callable[..., Any]) -> Callable[[], None]:
    """Let every implementation of experts be `entry`; returns the function that undoes it.

    Does nothing in versions of transformers without that interface.
    """
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError:
        return lambda: None
    table: dict[str, Any] = ExpertsInterface._global_mapping
    stock = dict(table)
    table.update(dict.fromkeys((*stock, LOOP_NAME), entry))

    def remove() -> None:
        table.clear()
        table.update(stock)

    return remove
