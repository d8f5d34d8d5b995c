"""What to ask: the declared grid of an experiment, validated, and the conditions it spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from detcheck.errors import UsageError

DEFAULT_PROMPT = "Tell me about Richard Feynman"
ENGINES = ("continuous", "static", "scripted")
TRAFFIC = ("alone", "mixed")
DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")
STOCK = "stock"
BATCH_INVARIANT = "batch-invariant"
OP_FAMILIES = ("matmul", "attention", "norm", "softmax", "reduce", "pointwise")
"""Families of ops that have batch-invariant kernels; `batch-invariant:matmul` switches on one."""
CORE_FAMILIES = ("matmul", "attention")
"""Families that every transformer uses; of the others a model may have none to override."""


def kernel_families(kernels: str) -> tuple[str, ...]:
    """Op families that a kernels setting makes invariant: none for `stock`, all for the bare name.

    Raises UsageError where the setting or a family in it is not known.
    """
    if kernels == STOCK:
        return ()
    name, _, subset = kernels.partition(":")
    families = tuple(subset.split("+")) if subset else OP_FAMILIES
    if name != BATCH_INVARIANT or (":" in kernels and not subset):
        raise UsageError(
            f"Unknown kernels {kernels!r}: use stock, batch-invariant, or a subset such as "
            f"batch-invariant:{OP_FAMILIES[0]}."
        )
    for family in families:
        if family not in OP_FAMILIES:
            raise UsageError(
                f"Unknown op family {family!r} in {kernels!r}: known are {', '.join(OP_FAMILIES)}, "
                "joined by '+'."
            )
    return families


def required_families(kernels: str) -> tuple[str, ...]:
    """Families that must be seen to run before a kernels setting is believed to have had effect.

    Those named in a subset, each of them; of the whole set only the core, since a model need not
    have the ops of the others (softmax, say, is inside attention).
    """
    families = kernel_families(kernels)
    return CORE_FAMILIES if families == OP_FAMILIES else families


@dataclass(frozen=True, slots=True)
class Condition:
    """One cell of the grid: one prompt, under one kernels setting, at one batch size."""

    prompt_index: int
    kernels: str
    batch_size: int
    completions: int
    """Completions asked for in this cell."""

    @property
    def condition_id(self) -> str:
        """Name of the cell within its run, such as `p0/stock/b4`."""
        return f"p{self.prompt_index}/{self.kernels}/b{self.batch_size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The declared grid. Every combination of prompt, kernels and batch size is a condition.

    Raises UsageError, in one sentence, where a value cannot be meant.
    """

    model: str | None = None
    """Hub id, folder, or None for the embedded SmolLM2-135M-Instruct."""
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)
    kernels: tuple[str, ...] = (STOCK, BATCH_INVARIANT)
    batch_sizes: tuple[int, ...] = (1, 4, 8, 16)
    """Requests in flight together."""
    completions: int = 48
    """Completions of each prompt under each kernels setting, shared out over the batch sizes."""
    engine: str = "continuous"
    traffic: str = "alone"
    """`alone`: the batch holds copies of the prompt; `mixed`: half of it is other requests."""
    max_new_tokens: int = 100
    temperature: float = 0.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    chat_template: bool = True
    """Wrap prompts in the model's chat template, where it has one."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("prompts", "kernels", "batch_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_types()
        self._check_choices()
        self._check_numbers()
        self._check_prompts()
        for kernels in self.kernels:
            kernel_families(kernels)

    def _check_choices(self) -> None:
        for name, allowed in (
            ("engine", ENGINES),
            ("traffic", TRAFFIC),
            ("dtype", DTYPES),
            ("device", DEVICES),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"Unknown {name} {value!r}: choose one of {', '.join(allowed)}.")

    def _check_types(self) -> None:
        """Values may come from JSON or a caller without a type checker."""
        integers = ("completions", "max_new_tokens", "seed")
        numbers = [(name, getattr(self, name)) for name in integers]
        numbers += [("batch size", size) for size in self.batch_sizes]
        for name, value in numbers:
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{name.replace('_', ' ')} must be a whole number, not {value!r}.")
        if not isinstance(self.temperature, int | float) or isinstance(self.temperature, bool):
            raise UsageError(f"temperature must be a number, not {self.temperature!r}.")
        for name, values in (("prompt", self.prompts), ("kernels", self.kernels)):
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

    def conditions(self) -> tuple[Condition, ...]:
        """The grid in the order it is measured: kernels alternate within each batch size.

        So a drift of the machine's speed falls on both, and the reference batch comes first.
        """
        shares = share_completions(self.completions, self.batch_sizes, self.traffic)
        return tuple(
            Condition(prompt_index, kernels, batch_size, shares[batch_size])
            for prompt_index in range(len(self.prompts))
            for batch_size in sorted(self.batch_sizes)
            for kernels in self.kernels
        )

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
