"""A model that transformers runs in this process."""

from __future__ import annotations

from typing import Annotated, Literal

from detcheck.options import Option
from detcheck.targets.base import Device, LoadedTarget, Traits

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

    @property
    def factory(self) -> str:  # type: ignore[override]
        """See `Target.factory`."""
        return FACTORIES[self.engine]

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(lockstep=self.engine == "static", ops_visible=True)
