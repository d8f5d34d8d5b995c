"""Batch-invariant experts: transformers' own loop over experts, whatever the model asks for.

transformers has several implementations of a mixture's experts. Its grouped and batched products
give a token other bits if the other tokens choose other experts. The loop (`eager`) computes
an expert's tokens by linear layers, which the mode makes independent of the number of tokens. It
adds a token's experts in the order of their numbers, whatever the others chose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

EXPERTS_OP = "transformers::experts"
LOOP_NAME = "eager"
"""The name of the loop in a model's config; transformers has no entry for it in its table."""


def experts(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    """transformers' interface for experts, by the loop that their class wrote down.

    `module` holds the experts; the arguments are those of its forward pass: hidden states
    (tokens, hidden), the indices of each token's experts (tokens, k) and their weights (tokens, k).
    """
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
