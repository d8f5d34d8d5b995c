"""A model that transformers runs in this process."""

from __future__ import annotations

from typing import Annotated, Literal

from detcheck.errors import UsageError
from detcheck.options import Option
from detcheck.targets.base import Device, LoadedTarget, Traits
from detcheck.targets.prefix_cache import AS_IS, PrefixCache, cache_name, check_states

FACTORIES = {
    "continuous": "detcheck.engines.continuous:ContinuousEngine",
    "static": "detcheck.engines.static:StaticEngine",
}


class InProcess(LoadedTarget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transformers model in this process."""

    engine: Annotated[
        Literal["continuous", "static"],
        Option(
            "Generator. continuous: transformers' continuous batching. static: lockstep batches."
        ),
    ] = "continuous"
    device: Device = "auto"
    pack_weights: Annotated[
        Literal["auto", "off"],
        Option(
            "Packed copies of linear layers' weights for invariant kernels on the CPU: faster, and "
            "as much memory again. auto: if memory suffices."
        ),
    ] = "auto"
    cuda_graphs: Annotated[
        Literal["off", "on"],
        Option(
            "Decoding steps of continuous batching on a GPU as CUDA graphs, whatever the kernels: "
            "the host then launches a step at once. Answers stay what they are."
        ),
    ] = "off"
    prefix_cache: PrefixCache = (AS_IS,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_states(self.prefix_cache)
        if self.engine == "static" and self.prefix_cache != (AS_IS,):
            raise UsageError(
                'The engine static keeps no prefix cache: use `engine="continuous"`, or leave '
                "`prefix_cache` out."
            )
        if self.engine == "static" and self.cuda_graphs == "on":
            raise UsageError(
                'The engine static captures no CUDA graphs: use `engine="continuous"`, or leave '
                "`cuda_graphs` out."
            )

    @property
    def placements(self) -> tuple[str, ...]:
        """`cold cache`, `warm cache`: the states of the prefix cache; empty for as-is."""
        return tuple(cache_name(state) for state in self.prefix_cache)

    @property
    def factory(self) -> str:  # type: ignore[override]
        """See `Target.factory`."""
        return FACTORIES[self.engine]

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(
            lockstep=self.engine == "static",
            ops_visible=True,
            varies_prefix_cache=len(self.prefix_cache) > 1,
        )
