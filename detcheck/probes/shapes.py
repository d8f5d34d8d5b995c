"""The sizes of a model's layers, at which `detcheck ops` probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detcheck.errors import ModelError


@dataclass(frozen=True, slots=True)
class LayerShapes:
    """Sizes of a decoder's layers, in elements."""

    name: str
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(K, N) of each linear layer of a block, each once, without the head."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return tuple(
            dict.fromkeys(
                (
                    (self.hidden, queries),
                    (self.hidden, keys),
                    (queries, self.hidden),
                    (self.hidden, self.intermediate),
                    (self.intermediate, self.hidden),
                )
            )
        )


EMBEDDED = LayerShapes("SmolLM2-135M-Instruct (embedded)", 576, 1536, 9, 3, 64, 49152)


def shapes_of(
    model: str | None, *, revision: str | None = None, trust_remote_code: bool = False
) -> LayerShapes:
    """Shapes of `model`, a hub id or folder, from its configuration; None: the embedded model.

    `revision` is a branch, tag or commit on the hub. Raises ModelError if there is no such model,
    or its configuration has no layer sizes.
    """
    if model is None:
        return EMBEDDED
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises various types for a missing or foreign file
        first = str(error).strip().split("\n")[0][:160].rstrip(".")
        raise ModelError(
            f"The configuration of {model} cannot be read ({first}): give a folder with a "
            "config.json, or leave `shapes_from` out for the embedded model."
        ) from error
    return _shapes(model, config.get_text_config())


def _shapes(name: str, config: Any) -> LayerShapes:
    try:
        heads = int(config.num_attention_heads)
        hidden = int(config.hidden_size)
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        intermediate = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        vocabulary = int(config.vocab_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"The configuration of {name} does not say how wide its layers are ({error}): it is "
            "not a decoder that detcheck knows."
        ) from error
    return LayerShapes(name, hidden, intermediate, heads, int(kv_heads), int(head_dim), vocabulary)
