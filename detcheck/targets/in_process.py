"""A model that transformers runs in this process."""

from __future__ import annotations

from typing import Annotated, Literal

from detcheck.options import Option
from detcheck.targets.base import (
    ChatTemplate,
    Device,
    Dtype,
    Model,
    Revision,
    Target,
    Traits,
    TrustRemoteCode,
)

FACTORIES = {
    "continuous": "detcheck.engines.continuous:ContinuousEngine",
    "static": "detcheck.engines.static:StaticEngine",
}


class InProcess(Target, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transformers model in this process."""

    engine: Annotated[
        Literal["continuous", "static"],
        Option(
            "Generator. continuous: transformers' continuous batching. static: lockstep batches."
        ),
    ] = "continuous"
    model: Model = None
    revision: Revision = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    chat_template: ChatTemplate = True
    trust_remote_code: TrustRemoteCode = False

    @property
    def factory(self) -> str:  # type: ignore[override]
        """See `Target.factory`."""
        return FACTORIES[self.engine]

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(lockstep=self.engine == "static", ops_visible=True)
