"""The base of all targets: data that names who is asked, with options, checks and traits."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from detcheck.errors import UsageError
from detcheck.experiment import AUTO, Experiment
from detcheck.kernels.settings import AS_SERVED, BATCH_INVARIANT, STOCK
from detcheck.options import Option, check_types

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")

Model = Annotated[
    str | None,
    Option("Hub id or folder of the model.", default="the embedded SmolLM2-135M-Instruct"),
]
Revision = Annotated[
    str | None,
    Option("Branch, tag or commit of a model on the hub.", (), "NAME", default="its main branch"),
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    Option("Number type of the weights; auto takes the model's own."),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Option("Where the model computes; auto takes a GPU if any.")
]
ChatTemplate = Annotated[
    bool,
    Option(
        "Send prompts as they are: no chat template, and of a server /completions.",
        ("--no-chat-template",),
    ),
]
TrustRemoteCode = Annotated[bool, Option("Let the model's own code run.")]


class Traits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Declared properties of a target. Other rooms read these and never an engine's name.

    The defaults are those of an engine on this machine that is told when requests arrive.
    """

    repeats_exactly: bool = True
    """An identical trial is computed in identical batches, so repeating it is an exact repeat."""
    forms_batches: bool = False
    """The target itself decides which requests share a forward pass."""
    lockstep: bool = False
    """All requests of a trial share every forward pass, so arrivals have no effect."""
    ops_visible: bool = False
    """Its ops run in this process and can be traced."""
    computes_here: bool = True
    """This machine computes the answers, so its environment is part of the measurement."""
    reloads: bool = False
    """Changing the kernels or the placement loads the model anew."""
    open_loop: bool = False
    """Requests arrive at random times, whether or not earlier ones are answered."""
    varies_prefix_cache: bool = False
    """Requests find an empty prefix cache in one place and a filled one in another."""
    choices: int = 1
    """Completions that it returns for each request."""
    planted: bool = False
    """The answers are made up, for tests: nothing was measured."""


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all targets; a subclass adds its options as fields.

    `engine` names the generator of the answers, and tells the targets apart in files. Raises
    UsageError if an option has a wrong type or makes no sense.
    """

    factory: ClassVar[str]
    """`module:class` of the engine, imported when it is opened; see `engines.open_engine`."""
    waiting: ClassVar[str] = "loading the model …"
    """Shown to the user until the first trial begins."""

    engine: str

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def traits(self) -> Traits:
        """Its declared properties."""
        raise NotImplementedError

    @property
    def placements(self) -> tuple[str, ...]:
        """Names of the places that compute answers; one empty name if there is only one."""
        return ("",)

    @property
    def usual_kernels(self) -> tuple[str, ...]:
        """The kernels settings of an experiment that names none."""
        return (STOCK, BATCH_INVARIANT)

    @property
    def model_name(self) -> str:
        """The model as a reader knows it."""
        model = getattr(self, "model", None)
        return model or "SmolLM2-135M-Instruct (embedded)"

    def settle(self, experiment: Experiment) -> Experiment:
        """`experiment` with its kernels named, checked for this target.

        Raises UsageError if the target cannot answer it.
        """
        if experiment.kernels == (AUTO,):
            experiment = msgspec.structs.replace(experiment, kernels=self.usual_kernels)
        self._check_chats(experiment)
        self.check(experiment)
        return experiment

    def _check_chats(self, experiment: Experiment) -> None:
        """Raise UsageError if a chat is to be sent without a chat template."""
        if getattr(self, "chat_template", True):
            return
        for number, item in enumerate(experiment.items, start=1):
            if item.messages:
                raise UsageError(
                    f"Prompt {number} is a chat, which needs the model's chat template: leave "
                    "`chat_template=False` out."
                )

    def check(self, experiment: Experiment) -> None:
        """Raise UsageError if the target cannot answer `experiment`."""
        if AS_SERVED in experiment.kernels:
            raise UsageError("The kernels as-served are those of a server: give `endpoints`.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `run.json`; `targets.from_dict` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


class LoadedTarget(Target, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the targets that load a model on this machine."""

    model: Model = None
    revision: Revision = None
    dtype: Dtype = "auto"
    chat_template: ChatTemplate = True
    trust_remote_code: TrustRemoteCode = False
