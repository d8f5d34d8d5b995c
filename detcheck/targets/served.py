"""Servers that speak the OpenAI API."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.kernels.settings import AS_SERVED
from detcheck.options import Option
from detcheck.targets.base import ChatTemplate, Target, Traits
from detcheck.targets.endpoints import TOGETHER, check_endpoint, poisson_rate
from detcheck.targets.prefix_cache import AS_IS, PrefixCache, cache_name, check_states

MOST_CHOICES = 128
"""Servers allow no more choices of one request."""


class Served(Target, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One or more endpoints of OpenAI-compatible servers; several are compared with each other."""

    factory: ClassVar[str] = "detcheck.engines.openai.engine:OpenAIEngine"
    waiting: ClassVar[str] = "checking the endpoint …"

    engine: Literal["openai"] = "openai"
    endpoints: Annotated[
        tuple[str, ...],
        Option(
            "Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1. "
            "Repeatable: several are compared with each other.",
            ("--endpoint",),
            "URL",
            repeatable=True,
        ),
    ] = ()
    model: Annotated[
        str | None,
        Option("Name that the model is served under.", default="the only model that is served"),
    ] = None
    arrivals: Annotated[
        str,
        Option(
            "together: all requests of a trial at once. poisson:RATE: open loop, RATE requests a "
            "second.",
            (),
            "together|poisson:RATE",
        ),
    ] = TOGETHER
    prefix_cache: PrefixCache = (AS_IS,)
    choices: Annotated[
        int,
        Option(
            "Choices that each request asks for, as the field n of the API. Each is a completion, "
            "and compared with the choice of the same number under other loads.",
            (),
            "N",
        ),
    ] = 1
    chat_template: ChatTemplate = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.endpoints:
            raise UsageError(
                "The engine openai needs a server: give `endpoints`, such as "
                "http://localhost:8000/v1."
            )
        for url in self.endpoints:
            check_endpoint(url)
        if len({url.rstrip("/") for url in self.endpoints}) != len(self.endpoints):
            raise UsageError("An endpoint is given twice: list each once.")
        if not 1 <= self.choices <= MOST_CHOICES:
            raise UsageError(
                f"`choices` must be from 1 to {MOST_CHOICES}, not {self.choices}: each request "
                "returns so many completions."
            )
        poisson_rate(self.arrivals)
        check_states(self.prefix_cache)

    @property
    def traits(self) -> Traits:
        """See `Target.traits`."""
        return Traits(
            repeats_exactly=False,
            forms_batches=True,
            computes_here=False,
            open_loop=poisson_rate(self.arrivals) is not None,
            varies_prefix_cache=len(self.prefix_cache) > 1,
            choices=self.choices,
        )

    @property
    def placements(self) -> tuple[str, ...]:
        """`endpoint 1`, `cold cache`, `endpoint 2 warm cache`, …; see `places`."""
        return tuple(name for name, _, _ in self.places)

    @property
    def places(self) -> tuple[tuple[str, str, str], ...]:
        """(placement, base URL, state of the prefix cache) of each place; several have names."""
        several = len(self.endpoints) > 1
        named = [
            (f"endpoint {n}" if several else "", url) for n, url in enumerate(self.endpoints, 1)
        ]
        return tuple(
            (" ".join(word for word in (name, cache_name(state)) if word), url, state)
            for name, url in named
            for state in self.prefix_cache
        )

    @property
    def usual_kernels(self) -> tuple[str, ...]:
        """A server's own."""
        return (AS_SERVED,)

    @property
    def model_name(self) -> str:
        """The served name, if one was given."""
        return self.model or "the served model"

    def check(self, experiment: Experiment) -> None:
        """See `Target.check`: a server's kernels cannot be chosen, and one seed has choices."""
        if self.choices > 1 and len(experiment.seeds) > 1:
            raise UsageError(
                "Several `seeds` and several `choices` are given: both ask for several samples, "
                "so give one seed, or leave `choices` out."
            )
        if experiment.kernels != (AS_SERVED,):
            raise UsageError(
                "detcheck cannot change the kernels of a server: leave `kernels` out. To compare "
                "two settings, start two servers and give both as `endpoints`."
            )
