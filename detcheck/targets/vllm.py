"""vLLM's offline engine, in a process of its own on this machine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from detcheck.errors import UsageError
from detcheck.options import Option
from detcheck.targets.base import LoadedTarget, Traits
from detcheck.targets.prefix_cache import AS_IS, PrefixCache, cache_name, check_states


class Vllm(LoadedTarget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model in vLLM; tensor-parallel sizes are compared with each other."""

    factory: ClassVar[str] = "detcheck.engines.vllm.engine:VllmEngine"

    engine: Literal["vllm"] = "vllm"
    tensor_parallel: Annotated[
        tuple[int, ...], Option("Tensor-parallel sizes to compare, comma-separated.", (), "LIST")
    ] = (1,)
    vllm_executor: Annotated[
        Literal["auto", "mp", "ray"],
        Option(
            "Runs vLLM's ranks. auto: vLLM chooses. mp: processes here. ray: the Ray cluster "
            "that this machine has joined."
        ),
    ] = "auto"
    prefix_cache: PrefixCache = (AS_IS,)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.tensor_parallel
        if not sizes or min(sizes) < 1 or len(set(sizes)) != len(sizes):
            raise UsageError("Give each tensor-parallel size once, such as 1,2.")
        check_states(self.prefix_cache)

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(reloads=True, varies_prefix_cache=len(self.prefix_cache) > 1)

    @property
    def placements(self) -> tuple[str, ...]:
        """`tp1`, `cold cache`, `tp2 warm cache`, …; see `places`."""
        return tuple(name for name, _, _ in self.places)

    @property
    def places(self) -> tuple[tuple[str, int, str], ...]:
        """(placement, tensor-parallel size, state of the prefix cache) of each place."""
        several = len(self.tensor_parallel) > 1
        return tuple(
            (" ".join(filter(None, (f"tp{size}" * several, cache_name(state)))), size, state)
            for size in self.tensor_parallel
            for state in self.prefix_cache
        )
