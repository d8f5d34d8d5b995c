"""Shapes of the layers of real models. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, int]
"""(N, K): columns of the result and length of the sums, as a linear layer's weight lies."""


@dataclass(frozen=True)
class Model:
    """One model, as far as its kernels see it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    linear: dict[str, Shape]
    """Linear layers by name; each occurs once a layer, but for `lm_head`."""
    vocabulary: int
    norms: int = 2
    """Norms of a layer over the hidden size."""
    head_norms: bool = False
    """True if queries and keys are normalised a head."""
    experts: int = 0
    experts_a_token: int = 0
    expert_linear: dict[str, Shape] | None = None
    """Linear layers of one expert."""


MODELS: dict[str, Model] = {
    "Llama-3-8B": Model(
        32, 4096, 32, 8, 128,
        {
            "q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096),
            "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336),
            "lm_head": (128256, 4096),
        },
        128256,
    ),
    "Qwen3-8B": Model(
        36, 4096, 32, 8, 128,
        {
            "q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096),
            "gate": (12288, 4096), "up": (12288, 4096), "down": (4096, 12288),
            "lm_head": (151936, 4096),
        },
        151936, head_norms=True,
    ),
    "Qwen3-30B-A3B": Model(
        48, 2048, 32, 4, 128,
        {
            "q": (4096, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 4096),
            "router": (128, 2048), "lm_head": (151936, 2048),
        },
        151936, head_norms=True, experts=128, experts_a_token=8,
        expert_linear={"gate_up": (1536, 2048), "down": (2048, 768)},
    ),
    "SmolLM2-135M": Model(
        30, 576, 9, 3, 64,
        {
            "q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576),
            "gate": (1536, 576), "up": (1536, 576), "down": (576, 1536),
            "lm_head": (49152, 576),
        },
        49152,
    ),
}  # fmt: skip


def linear_shapes(*names: str) -> Iterator[tuple[str, str, int, int]]:
    """(model, layers, N, K) of the distinct linear layers of models, each shape once."""
    seen: set[Shape] = set()
    for name in names or tuple(MODELS):
        by_shape: dict[Shape, list[str]] = {}
        for layer, shape in MODELS[name].linear.items():
            by_shape.setdefault(shape, []).append(layer)
        for shape, layers in by_shape.items():
            if shape not in seen:
                seen.add(shape)
                yield name, ", ".join(layers), *shape
