"""vLLM's offline engine, in a process of its own on this machine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from detcheck.errors import UsageError
from detcheck.options import Option
from detcheck.targets.base import LoadedTarget, Traits


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

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.tensor_parallel
        if not sizes or min(sizes) < 1 or len(set(sizes)) != len(sizes):
            raise UsageError("Give each tensor-parallel size once, such as 1,2.")

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(reloads=True)

    @property
    def placements(self) -> tuple[str, ...]:
        """`tp1`, `tp2`, … if there are several sizes."""
        if len(self.tensor_parallel) == 1:
            return ("",)
        return tuple(f"tp{size}" for size in self.tensor_parallel)
