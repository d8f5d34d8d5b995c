"""Joins the proofs of a mode, one for each trial, to the evidence of a kernels setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from detcheck.evidence import KernelsProof
from detcheck.kernels.mode import Proof
from detcheck.kernels.self_check import PASSED


def evidence_of(
    kernels: str, proofs: Sequence[Proof], required: Sequence[str], *, replays: bool
) -> KernelsProof:
    """The proofs of all trials with one kernels setting, as one: calls are summed.

    `required` are the op families that must run in every trial. `replays` is true if steps are
    replayed as CUDA graphs.
    """
    calls: Counter[str] = Counter()
    outside: dict[str, int] = {}
    for proof in proofs:
        calls.update(proof.overrides)
        outside |= proof.outside
    idle = _idle(proofs, replays)
    missing = tuple(family for family in required if family in idle or not proofs)
    problems = [proof.self_check for proof in proofs if proof.self_check != PASSED]
    return KernelsProof(
        kernels,
        dict(calls),
        missing,
        problems[0] if problems else PASSED,
        outside,
        proofs[-1].pack_weights if proofs else "off",
        max((proof.packed_bytes for proof in proofs), default=0),
    )


def _idle(proofs: Sequence[Proof], replays: bool) -> set[str]:
    """Families that did not run in some trial.

    A graph that an earlier trial of the same kernels captured runs its kernels without calling the
    overrides. So if steps are replayed, only families that no trial called are idle.
    """
    idle = [{*proof.idle_families} for proof in proofs]
    if replays and idle:
        return set.intersection(*idle)
    return set().union(*idle)
