"""Decoding steps of continuous batching as CUDA graphs: captured once a shape, then replayed.

transformers captures and replays a step; its prompts run as usual. A replayed step runs no Python
of the model and none of ours. So tokens are chosen after the step, from logits that every replay
writes to the same place.
"""

from __future__ import annotations

from typing import Any

import torch

from detcheck.errors import UsageError

GRAPH_QUERIES, GRAPH_KEYS = 16, 1024
"""Queries and keys of a step are padded to multiples of these, and each shape is captured once.
More would copy more of the cache at every layer, fewer would capture more often. Not measured yet.
"""


def require_graphs(device: torch.device) -> None:
    """Raise UsageError if transformers cannot capture graphs on this device."""
    if device.type != "cuda":
        raise UsageError(
            f'CUDA graphs need a GPU, and the model is on {device.type}: use `device="cuda"`, or '
            "leave `cuda_graphs` out."
        )


def run_step(processor: Any, model: torch.nn.Module, *, replay: bool) -> None:
    """One step of transformers' batch processor; with `replay` as a graph, captured if it is new.

    Raises UsageError if the model does something that a graph cannot hold.
    """
    processor.model_runner.use_cuda_graph_varlen = replay
    try:
        processor._generation_step(model)
    except RuntimeError as error:
        if not (replay and "captur" in str(error)):
            raise
        raise UsageError(
            "A decoding step of this model cannot be captured in a CUDA graph "
            f"({str(error).splitlines()[0]}): leave `cuda_graphs` out."
        ) from error


class LastLogits:
    """The logits of the last step."""

    def __init__(self, rows: int, *, in_place: bool):
        """With `in_place` every step writes up to `rows` rows to one place, as graphs need it."""
        self._rows = rows
        self._in_place = in_place
        self._logits: torch.Tensor | None = None

    def keep(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """In place of transformers' sampling: keep the (1, rows, vocabulary) scores.

        The ids are not chosen yet. Waits for nothing, so a graph may capture it. The first step of
        a shape runs uncaptured, so the place is never made in a capture.
        """
        del output_ids
        if not self._in_place:
            self._logits = scores[0]
            return
        if self._logits is None:
            self._logits = scores.new_empty((self._rows, scores.shape[2]))
        rows = min(self._rows, scores.shape[1])
        self._logits[:rows].copy_(scores[0, :rows])

    def take(self, rows: int) -> torch.Tensor:
        """The first `rows` of the last step's logits, (rows, vocabulary)."""
        assert self._logits is not None
        logits = self._logits[:rows]
        if not self._in_place:
            self._logits = None
        return logits
