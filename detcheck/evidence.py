"""Records by which engines attest their work: observed load, proof of kernels, server checks.

These are records of `run.json` and `completions.jsonl`. A verdict rests on them.
"""

from __future__ import annotations

import msgspec

from detcheck.kernels.settings import KernelSettings
from detcheck.text import count, quoted

FORWARD_PASSES = "forward passes"
SERVER_COUNTERS = "server counters"
STREAMED_TOKENS = "streamed tokens"
"""Sources of evidence that batches were formed, the strongest first."""
MIN_COMPARISONS = 20
"""Fewest comparisons of a prompt that a pass needs: with no difference in 20, the 95 % upper bound
of the rate of differing answers is 14 %."""

MOST_DECIMALS = 6
"""Log-probabilities with so many decimals, or fewer, are rounded: float32 has more."""
MOST_DIGITS = 6
"""The same for significant decimal digits: float32 has 7 to 9."""
MOST_BITS = 16
"""The same for significant bits: float32 has 24, bfloat16 has 8."""


class ObservedBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The batches that one request was computed in, counted over its forward passes."""

    rows_min: int
    """Fewest requests that shared one of its forward passes, itself included."""
    rows_max: int
    """Most requests that shared one of its forward passes, itself included."""
    rows_mean: float
    """Mean requests a forward pass."""
    query_tokens_max: int
    """Most query tokens (prefill and decode together) in one of its forward passes."""
    steps: int
    """Forward passes that it took part in."""


class Precision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How finely log-probabilities are written: the finest of them counts."""

    decimals: int
    """Fewest decimals that hold every one; one more than MOST_DECIMALS if these do not."""
    digits: int
    """Most significant decimal digits of any; 0 if all are 0."""
    bits: int
    """Most significant bits of a best token's."""

    def joined(self, other: Precision) -> Precision:
        """The precision of both sets of numbers together."""
        return Precision(
            max(self.decimals, other.decimals),
            max(self.digits, other.digits),
            max(self.bits, other.bits),
        )

    @property
    def rounding(self) -> str:
        """`to 4 decimals`, `to 4 digits` or `to 8 bits`; empty if they are as fine as float32."""
        if self.digits == 0:
            return "to 0"
        if self.decimals <= MOST_DECIMALS:
            return f"to {count(self.decimals, 'decimal')}"
        if self.digits <= MOST_DIGITS:
            return f"to {count(self.digits, 'digit')}"
        return f"to {count(self.bits, 'bit')}" if self.bits <= MOST_BITS else ""


class LoadEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The batches of one trial, if they were observed for the trial and not for each request."""

    source: str
    """`forward passes`, `server counters` or `streamed tokens`."""
    rows_max: int
    """Most requests that were observed to be computed together."""
    rows_mean: float | None = None
    """Mean requests computed together; None if the source does not tell."""
    query_tokens_max: int | None = None
    """Most query tokens in one forward pass; None if the source does not tell."""
    preemptions: int | None = None
    """Requests that the server put off and computed anew; None if it does not count them."""
    prefix_cache_hits: int | None = None
    """Prompt tokens answered from the server's prefix cache; None if it does not count them."""


class KernelsProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence that a kernels setting was in force: the ops overridden and seen to run."""

    kernels: str
    """Kernels setting."""
    overrides: dict[str, int]
    """Calls that each override served, by op name; 0 is normal for an op that the model has not."""
    missing: tuple[str, ...] = ()
    """Op families that were asked for and of which no override was observed to run."""
    self_check: str | None = None
    """`passed`, or the fault that the mode's own check found; None if there is no check (stock)."""
    outside: dict[str, int] = {}
    """Calls of floating-point ops that no override covers, by op name; a proof has none."""
    pack_weights: str = "off"
    """`on` if products used packed copies of the weights, `off`, or the reason why they did not.
    Results with and without packed copies may differ in their last bits."""
    packed_bytes: int = 0
    """Memory of the packed copies."""

    @property
    def fault(self) -> str | None:
        """The reason why it is no proof, in words; None if it is one.

        Stock and a server's kernels claim nothing and need no proof.
        """
        if not KernelSettings.parse(self.kernels).claims_invariance:
            return None
        if self.missing:
            return f"overrides not observed to run: {', '.join(self.missing)}"
        if self.self_check != "passed":
            return f"its self-check reports {quoted(self.self_check or 'nothing', 100)}"
        if self.outside:
            return f"ops ran outside the overrides: {', '.join(list(self.outside)[:5])}"
        return None if any(self.overrides.values()) else "no override served a call"

    @property
    def complete(self) -> bool:
        """True if it lacks nothing as a proof."""
        return self.fault is None


UNKNOWN_FIELDS = "unknown fields"
WHOLE_ANSWERS = "whole answers"
"""Name of the check that fails if replies hold fields that are not compared."""


class EndpointCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One property of a server that was checked before the experiment."""

    name: str
    """Two or three words, such as `seed`."""
    holds: bool | None
    """None if it could not be determined, or only informs."""
    sentence: str
    """The result, for a reader."""
    decisive: bool = False
    """If true, a failed check makes the verdict inconclusive."""
    placement: str = ""
    """Which endpoint, such as `endpoint 2`; empty if there is only one."""


class ModelIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model answered, as far as the engine can tell. None in a field: not known."""

    name: str | None = None
    """Hub id, folder name or served name."""
    revision: str | None = None
    """Commit of a model on the hub; of a server its constant `system_fingerprint`."""
    weights_digest: str | None = None
    """Tagged hash of all weight files: `sha256:…`."""
    config_digest: str | None = None
    """Tagged hash of the model's config and generation config, and of code that it brings along."""
    tokenizer_digest: str | None = None
    """Tagged hash of the tokenizer's files: `sha256:…`."""
    chat_template_digest: str | None = None
    """Tagged hash of the chat template's text: `sha256:…`."""
    dtype: str | None = None
    """Number type that the weights were really loaded in."""
    prompt_digests: tuple[str, ...] = ()
    """Tagged hash of each prompt's token ids, as they were sent to the model."""
    decoding: dict[str, str] = {}
    """Decoding options beside the experiment's, by name, each with its effect.

    Such as `1.3, left out`: the model's own `generation_config` asks for it, and detcheck does
    not do it; or the value that a server was really sent.
    """
