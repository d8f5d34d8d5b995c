"""Planted answers, for tests and examples: nothing is computed."""

from __future__ import annotations

from typing import ClassVar, Literal

from detcheck.targets.base import Target, Traits


class Scripted(Target, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scripted engine; no gate passes its answers."""

    factory: ClassVar[str] = "detcheck.engines.scripted:ScriptedEngine"
    waiting: ClassVar[str] = "preparing planted answers …"

    engine: Literal["scripted"] = "scripted"

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(planted=True)

    @property
    def model_name(self) -> str:
        """No model."""
        return "planted answers (no model)"
