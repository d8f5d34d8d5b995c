"""What to ask: the declared grid of an experiment, validated, and the conditions it spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from detcheck.endpoints import TOGETHER, check_endpoint, poisson_rate
from detcheck.errors import UsageError

DEFAULT_PROMPT = "Tell me about Richard Feynman"
AUTO = "auto"
OPENAI = "openai"
VLLM = "vllm"
ENGINES = ("continuous", "static", "scripted", OPENAI, VLLM)
TRAFFIC = ("alone", "mixed")
DTYPES = ("auto", "bfloat16", "float16", "float32")
VLLM_EXECUTORS = (AUTO, "mp", "ray")
DEVICES = ("auto", "cpu", "cuda")
STOCK = "stock"
BATCH_INVARIANT = "batch-invariant"
FULLY_INVARIANT = "fully-invariant"
"""The level above `batch-invariant`: chunking and prefill-decode as well, at a price."""
AS_SERVED = "as-served"
"""The kernels of an endpoint: whatever its server was started with."""
OP_FAMILIES = ("matmul", "attention", "norm", "softmax", "reduce", "pointwise")
"""Families of ops that have batch-invariant kernels; `batch-invariant:matmul` switches on one."""
PREFILL = "prefill"
"""The family that `fully-invariant` has beside them: a prompt is attended to query by query."""
FAMILIES = (*OP_FAMILIES, PREFILL)
CORE_FAMILIES = ("matmul", "attention")
"""Families that every transformer uses; of the others a model may have none to override."""


def kernel_families(kernels: str) -> tuple[str, ...]:
    """Op families that a kernels setting makes invariant: none for `stock`, all for the bare name.

    None for `as-served` either: nothing is known of a server's kernels. Raises UsageError where
    the setting or a family in it is not known.
    """
    if kernels in (STOCK, AS_SERVED):
        return ()
    if kernels == FULLY_INVARIANT:
        return FAMILIES
    name, _, subset = kernels.partition(":")
    families = tuple(subset.split("+")) if subset else OP_FAMILIES
    if name != BATCH_INVARIANT or (":" in kernels and not subset):
        raise UsageError(
            f"Unknown kernels {kernels!r}: use stock, batch-invariant, fully-invariant, or a "
            f"subset such as batch-invariant:{OP_FAMILIES[0]}."
        )
    for family in families:
        if family not in FAMILIES:
            raise UsageError(
                f"Unknown op family {family!r} in {kernels!r}: known are {', '.join(FAMILIES)}, "
                "joined by '+'."
            )
    return families


def kernels_claimed(kernels: str) -> bool:
    """Whether a setting claims kernels of ours, which then have to be proven.

    Of a server's kernels nothing is claimed.
    """
    return kernels not in (STOCK, AS_SERVED)


def required_families(kernels: str) -> tuple[str, ...]:
    """Families that must be seen to run before a kernels setting is believed to have had effect.

    Those named in a subset, each of them; of the whole set only the core, since a model need not
    have the ops of the others (softmax, say, is inside attention).
    """
    if kernels == FULLY_INVARIANT:
        return (*CORE_FAMILIES, PREFILL)
    families = kernel_families(kernels)
    return CORE_FAMILIES if families == OP_FAMILIES else families


@dataclass(frozen=True, slots=True)
class Condition:
    """One cell of the grid: a prompt, under a kernels setting, at a batch size, in one place."""

    prompt_index: int
    kernels: str
    batch_size: int
    completions: int
    """Completions asked for in this cell."""
    placement: str = ""
    """Where it is computed: `endpoint 2`, `tp3`; empty where the grid has only one place."""

    @property
    def condition_id(self) -> str:
        """Name of the cell within its run, such as `p0/stock/b4` or `p0/stock/b4/tp2`."""
        return condition_id(self.prompt_index, self.kernels, self.batch_size, self.placement)


def condition_id(prompt_index: int, kernels: str, batch_size: int, placement: str = "") -> str:
    """Name of a cell of the grid within its run."""
    where = f"/{placement.replace(' ', '-')}" if placement else ""
    return f"p{prompt_index}/{kernels}/b{batch_size}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The declared grid. Every combination of prompt, kernels, batch size and placement is a cell.

    Raises UsageError, in one sentence, where a value cannot be meant.
    """

    model: str | None = None
    """Hub id, folder, or None for the embedded SmolLM2-135M-Instruct. Of an endpoint: the name it
    is served under, or None for the only one that is served."""
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)
    kernels: tuple[str, ...] = (AUTO,)
    """`auto`: `as-served` for an endpoint, else stock beside batch-invariant."""
    batch_sizes: tuple[int, ...] = (1, 4, 8, 16)
    """Requests in flight together."""
    completions: int = 48
    """Completions of each prompt under each kernels setting in each place, shared out over the
    batch sizes."""
    engine: str = AUTO
    """`auto`: `openai` where there are endpoints, else `continuous`."""
    endpoints: tuple[str, ...] = ()
    """Base URLs of OpenAI-compatible servers, such as http://localhost:8000/v1."""
    arrivals: str = TOGETHER
    """`together`, or `poisson:RATE`: open loop, RATE requests a second on average (endpoints)."""
    tensor_parallel: tuple[int, ...] = (1,)
    """Tensor-parallel sizes to compare (engine `vllm`)."""
    vllm_executor: str = AUTO
    """What runs vLLM's ranks: `auto` (vLLM chooses), `mp` (processes here) or `ray` (a cluster)."""
    traffic: str = "alone"
    """`alone`: the batch holds copies of the prompt; `mixed`: half of it is other requests."""
    max_new_tokens: int = 100
    temperature: float = 0.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    chat_template: bool = True
    """Wrap prompts in the model's chat template, where it has one. Of an endpoint: ask
    /chat/completions, not /completions."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("prompts", "kernels", "batch_sizes", "endpoints", "tensor_parallel"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.engine == AUTO:
            object.__setattr__(self, "engine", OPENAI if self.endpoints else "continuous")
        if self.kernels == (AUTO,):
            usual = (AS_SERVED,) if self.engine == OPENAI else (STOCK, BATCH_INVARIANT)
            object.__setattr__(self, "kernels", usual)
        self._check_types()
        self._check_choices()
        self._check_numbers()
        self._check_prompts()
        for kernels in self.kernels:
            kernel_families(kernels)
        self._check_placement()

    def _check_choices(self) -> None:
        for name, allowed in (
            ("engine", ENGINES),
            ("traffic", TRAFFIC),
            ("dtype", DTYPES),
            ("device", DEVICES),
            ("vllm_executor", VLLM_EXECUTORS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"Unknown {name} {value!r}: choose one of {', '.join(allowed)}.")

    def _check_types(self) -> None:
        """Values may come from JSON or a caller without a type checker."""
        integers = ("completions", "max_new_tokens", "seed")
        numbers = [(name, getattr(self, name)) for name in integers]
        numbers += [("batch size", size) for size in self.batch_sizes]
        numbers += [("tensor-parallel size", size) for size in self.tensor_parallel]
        for name, value in numbers:
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{name.replace('_', ' ')} must be a whole number, not {value!r}.")
        if not isinstance(self.temperature, int | float) or isinstance(self.temperature, bool):
            raise UsageError(f"temperature must be a number, not {self.temperature!r}.")
        for name, values in (
            ("prompt", self.prompts),
            ("kernels", self.kernels),
            ("endpoint", self.endpoints),
            ("arrivals", (self.arrivals,)),
        ):
            for text in values:
                if not isinstance(text, str):
                    raise UsageError(f"Each {name} must be text, not {text!r}.")

    def _check_numbers(self) -> None:
        if self.completions < 1:
            raise UsageError(f"--completions must be at least 1, not {self.completions}.")
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature must be 0 or more, not {self.temperature}.")
        if not self.batch_sizes:
            raise UsageError("Give at least one batch size, such as -b 1,4,8.")
        for batch_size in self.batch_sizes:
            if batch_size < 1:
                raise UsageError(f"Batch sizes must be at least 1, not {batch_size}.")
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise UsageError("A batch size is given twice: list each once.")
        if len(set(self.kernels)) != len(self.kernels) or not self.kernels:
            raise UsageError("Give each kernels setting once, such as -k stock,batch-invariant.")
        largest = max(self.batch_sizes)
        if largest > self.completions:
            raise UsageError(
                f"Batch size {largest} is larger than the {self.completions} completions asked "
                f"for: raise -n to at least {largest} or drop that batch size."
            )
        if len(self.batch_sizes) > self.completions:
            raise UsageError(
                f"{len(self.batch_sizes)} batch sizes cannot share {self.completions} completions: "
                "raise -n or give fewer batch sizes."
            )

    def _check_prompts(self) -> None:
        if not self.prompts:
            raise UsageError("Give at least one prompt.")
        for index, prompt in enumerate(self.prompts):
            if not prompt.strip():
                raise UsageError(f"Prompt {index + 1} is empty: say what to ask.")
        if len(set(self.prompts)) != len(self.prompts):
            raise UsageError("A prompt is given twice: list each once.")

    def _check_placement(self) -> None:
        """Endpoints belong to `openai`, tensor-parallel sizes to `vllm`, and to nobody else."""
        if self.engine == OPENAI:
            self._check_endpoints()
        elif self.endpoints:
            raise UsageError(f"--endpoint is for --engine openai, not {self.engine}.")
        elif AS_SERVED in self.kernels:
            raise UsageError("The kernels as-served are those of an endpoint: give --endpoint URL.")
        if poisson_rate(self.arrivals) is not None and self.engine != OPENAI:
            raise UsageError("--arrivals poisson is for endpoints: give --endpoint URL.")
        sizes = self.tensor_parallel
        if not sizes or min(sizes) < 1 or len(set(sizes)) != len(sizes):
            raise UsageError("Give each tensor-parallel size once, such as --tensor-parallel 1,2.")
        if sizes != (1,) and self.engine != VLLM:
            raise UsageError("--tensor-parallel is for --engine vllm.")
        if self.vllm_executor != AUTO and self.engine != VLLM:
            raise UsageError("--vllm-executor is for --engine vllm.")

    def _check_endpoints(self) -> None:
        if not self.endpoints:
            raise UsageError(
                "--engine openai needs a server: give --endpoint URL, such as "
                "http://localhost:8000/v1."
            )
        if self.kernels != (AS_SERVED,):
            raise UsageError(
                "detcheck cannot change the kernels of a server: leave -k out, and compare two "
                "servers started with different settings by two --endpoint."
            )
        for url in self.endpoints:
            check_endpoint(url)
        if len({url.rstrip("/") for url in self.endpoints}) != len(self.endpoints):
            raise UsageError("An endpoint is given twice: list each once.")

    @property
    def placements(self) -> tuple[str, ...]:
        """Names of the places that answers are computed in; one empty name where it is one."""
        if len(self.endpoints) > 1:
            return tuple(f"endpoint {number}" for number in range(1, len(self.endpoints) + 1))
        if len(self.tensor_parallel) > 1:
            return tuple(f"tp{size}" for size in self.tensor_parallel)
        return ("",)

    def conditions(self) -> tuple[Condition, ...]:
        """The grid in the order it is measured: places and kernels alternate within a batch size.

        So a drift of the machine's speed falls on all, and the reference batch comes first. vLLM
        loads its model anew for each place and kernels setting: there these change last.
        """
        shares = share_completions(self.completions, self.batch_sizes, self.traffic)
        return tuple(
            Condition(prompt_index, kernels, batch_size, shares[batch_size], placement)
            for prompt_index, batch_size, placement, kernels in self._cells()
        )

    def _cells(self) -> Iterator[tuple[int, int, str, str]]:
        """(prompt index, batch size, placement, kernels) of every condition, in order."""
        prompts, sizes = range(len(self.prompts)), sorted(self.batch_sizes)
        if self.engine != VLLM:
            yield from product(prompts, sizes, self.placements, self.kernels)
            return
        for placement, kernels in product(self.placements, self.kernels):
            for prompt_index, batch_size in product(prompts, sizes):
                yield prompt_index, batch_size, placement, kernels

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `run.json`; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Experiment:
        """Inverse of `to_dict`; raises UsageError where a field is unknown or has a wrong type."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise UsageError(f"Unknown experiment field {min(unknown)!r}.")
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise UsageError(f"The experiment is malformed: {error}.") from error


def probes_per_trial(batch_size: int, traffic: str) -> int:
    """Requests of a batch that are the probed prompt; the others are filler."""
    return batch_size if traffic == "alone" else max(1, batch_size // 2)


def share_completions(
    completions: int, batch_sizes: tuple[int, ...], traffic: str
) -> dict[int, int]:
    """Share `completions` out over the batch sizes, in whole batches as far as it goes.

    An even share each, but a batch of one, which has nothing in it to vary, only gets a few
    (enough to show that it repeats) and whatever does not fill whole batches elsewhere.
    """
    sizes = sorted(batch_sizes, reverse=True)
    shares: dict[int, int] = {}
    left = completions
    for rank, batch_size in enumerate(sizes):
        probes = probes_per_trial(batch_size, traffic)
        others = len(sizes) - rank - 1
        if others == 0:
            shares[batch_size] = left
            break
        single = REPEATS_OF_ONE if sizes[-1] == 1 else 0
        sharing = others + 1 - (1 if single else 0)
        even = (left - single) / sharing
        trials = max(1, round(even / probes))
        if trials > 1 and trials * probes > left - others - (1 if single else 0):
            trials -= 1  # a batch of one keeps two at the least: one exact repeat
        shares[batch_size] = max(1, min(trials * probes, left - others))
        left -= shares[batch_size]
    return shares


REPEATS_OF_ONE = 3
"""Completions that a batch of one gets at the least: the first and two exact repeats."""
